"""What a plan counts where solvers, sweeps and concatenations differ: against the same run without them.

And which runs share their programs: against what JAX knows a program by.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpa
from jaxpa.checkpoint.load import settings_of
from jaxpa.checkpoint.source import described, resolve
from jaxpa.devices import cost, known
from jaxpa.devices.plan import plan, run_of
from jaxpa.media.subjects import Subject
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec
from jaxpa.routing import perturb
from jaxpa.schedule import steps_above

SUBJECT = Subject("a picture that is not opened.png", mask="its mask.png")


def planned(**words):
    return plan(resolve("mini"), Request.of("a car", subjects=(SUBJECT,), **words))


@pytest.mark.parametrize(("solver", "asked"), [("euler", 1), ("heun", 2), ("ab2", 1)])
def test_solvers(solver, asked):
    """As many forwards as velocities in a step: of the images, of the references, and of an inversion."""
    for words in ({"path": "line"}, {"path": "ode"}, {"path": "ode", "concat": "zero"}, {"level": "token"}):
        assert planned(solver=solver, **words)["sample_forwards"] == asked * planned(**words)["sample_forwards"]
    # RF inversion stays Euler's.
    rf, line = ({"path": "rf", "gamma": 0.5}, {"path": "line"})
    inversion = planned(**rf)["sample_forwards"] - planned(**line)["sample_forwards"]
    assert planned(solver=solver, **rf)["sample_forwards"] == asked * planned(**line)["sample_forwards"] + inversion


def test_sweeps():
    once, thrice = (planned(path="ode", sweeps=sweeps, steps=10) for sweeps in (0, 2))
    assert (once["inversion_steps"], thrice["inversion_steps"]) == (10, 30)
    assert thrice["sample_forwards"] - once["sample_forwards"] == 20


def test_joined_tokens():
    """No row of the reference after tau, but longer sequences of the images."""
    none, zero, joined = (planned(path="line", concat=concat, steps=10) for concat in (None, "zero", "joined"))
    late = 10 - none["steps_above_tau"][0]
    assert 0 < late < 10
    assert joined["sample_forwards"] == none["sample_forwards"] == zero["sample_forwards"] - late
    source, n, m = resolve("mini"), none["image_tokens"], none["text_tokens"]
    longer, usual = (cost.transformer_flops(source.config.transformer, tokens, m) for tokens in (2 * n, n))
    assert joined["tflop"] - none["tflop"] == pytest.approx(late * (longer - usual) / 1e12)


def test_steps_above_tau():
    """As the sampler counts them, at the schedule's own times and a bit beside them too."""
    source = resolve("mini")
    run = run_of(Request.of("a car", subjects=(SUBJECT,)), Spec(source.config, settings_of(source)))
    near = [np.nextafter(run.times, np.float32(side)) for side in (0, 1)]
    gates = [float(gate) for gate in np.clip(np.concatenate([run.times, *near, np.linspace(0, 1, 21)]), 0, 1)]
    gates += [0.1, 1 / 3, float(run.times[5]) + 1e-9]  # numbers that float32 does not have
    assert replace(run, gates=gates).above == [int(steps_above(jnp.asarray(run.times), gate)) for gate in gates]


def named(source=None, mesh=None, **words):
    """The name of a run's programs."""
    source, request = source or resolve("mini"), Request.of("a car", **{"subjects": (SUBJECT,), **words})
    return known.signature(source, request, plan(source, request), mesh)


@pytest.fixture(scope="module")
def of_jax(pictures):
    """What JAX knows the programs of a run by: the structure and the shapes of the sampler's task, and how often the
    masks' program was compiled."""
    pipe = jaxpa.load("mini")
    subject = jaxpa.Subject(pictures / "car.png", pictures / "car-mask.png")
    references, trajectory = {}, {}

    def ask(**words):
        request = Request.of("a car", subjects=(subject,), steps=2, **words)
        key = words.get("coverage")
        references.setdefault(key, pipe.prepare(request))
        trajectory.setdefault(key, jnp.zeros((3, 1, 144, 32)))
        seeds = np.asarray(request.sampling.seeds(), np.uint32)
        before = perturb._cache_size()  # type: ignore[attr-defined]
        tasks, x = pipe.tasks(request, references[key], (trajectory[key], None), seeds)
        shapes = [(np.shape(leaf), leaf.dtype) for leaf in jax.tree.leaves((tasks[0], x))]
        return jax.tree.structure((tasks[0], x)), shapes, perturb._cache_size() - before  # type: ignore[attr-defined]

    return ask


USUAL = {"preset": "mini", "path": "line"}
SAME = [
    {"tau": 0.3}, {"seed": 7}, {"guidance": 2.0}, {"guidance_inside": 2.0}, {"eta": 0.5}, {"shuffle": 0.5},
    {"coverage": 0.4}, {"tau": [0.3, 0.7]},
]  # fmt: skip
OTHER = [
    {"soft": True}, {"outline": 5}, {"margin": 3}, {"parts": "kv"}, {"blocks": (1, 2)}, {"level": "token"},
    {"concat": "joined"}, {"concat": "zero"}, {"solver": "heun"}, {"cache": 0.1}, {"num_images": 2},
    {"tau_blocks": ("0-2=0.3",)},
]  # fmt: skip


def test_runs_that_share_their_programs(of_jax):
    usual = of_jax(**USUAL)[:2]
    assert of_jax(**USUAL)[2] == 0
    for words in SAME:
        assert of_jax(**{**USUAL, **words}) == (*usual, 0), words
        assert named(steps=2, **{**USUAL, **words}) == named(steps=2, **USUAL), words
    for words in OTHER:
        *found, compiled = of_jax(**{**USUAL, **words})
        assert tuple(found) != usual or compiled, words
        assert named(steps=2, **{**USUAL, **words}) != named(steps=2, **USUAL), words


@pytest.mark.parametrize(("one", "two"), [
    ({"parts": "kv"}, {"parts": "q"}), ({"blocks": (1, 2)}, {"blocks": (0, 3)}), ({"cache": 0.1}, {"cache": 0.2}),
    ({"tau_blocks": ("0-2=0.3",)}, {"tau_blocks": ("1-1=0.3", "3-4=0.6")}),
])  # fmt: skip
def test_values_that_are_data(of_jax, one, two):
    assert of_jax(**USUAL, **one)[:2] == of_jax(**USUAL, **two)[:2]
    assert named(**USUAL, **one) == named(**USUAL, **two)


def test_other_programs():
    """Whether RF inversion asks the network, the rows of classifier-free guidance, the batch, and the devices."""
    rf = [named(preset="official", gamma=gamma) for gamma in (1.0, 0.5, 0.7)]
    assert (rf[0] != rf[1], rf[1] == rf[2]) == (True, True)
    schnell = described("schnell")
    guided = [named(schnell, subjects=(), guidance=guidance, batch_size=1) for guidance in (0.0, 1.0, 3.0, 4.0)]
    assert [each == guided[0] for each in guided] == [True, True, False, False]
    assert guided[2] == guided[3]
    batches = [named(num_images=count, batch_size=size) for count, size in ((4, 2), (6, 2), (6, 3))]
    assert (batches[0] == batches[1], batches[1] == batches[2]) == (True, False)
    meshes = [named(mesh=mesh) for mesh in (None, "data=2", "data=2,model=1", "model=1,data=2", "model=2")]
    assert len(set(meshes)) == 3
    assert meshes[1] == meshes[2] == meshes[3]
    assert named(subjects=(SUBJECT, SUBJECT)) != named(subjects=(SUBJECT,), scene=SUBJECT)
