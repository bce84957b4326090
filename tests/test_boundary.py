"""What the book's public functions say to arguments that are misspelt, misshapen or out of range."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import MASKS, OFFSETS, C, H, N, W, make_task, put, some, times_of, toy

from jaxpa import inversion, personalize, routing, sampling, schedule, tokens
from jaxpa.config import ScheduleConfig, TransformerConfig
from jaxpa.errors import JaxpaError
from jaxpa.personalize import PRESETS, Phase, Preset
from jaxpa.schedule import Steps
from jaxpa.tokens import Routing
from jaxpa.transformer import Flux, FluxConditions

TIMES, X, NOISE = times_of(6), some(1, 1, N, C), some(2, 1, N, C)
TASK = make_task(concat="zero")
BYTES = np.zeros((1, N, C), np.uint8)
PLACED = put(MASKS[:1], OFFSETS[:1])
KEY = jax.random.key(0)
FORWARD = inversion.forward_times(TIMES)

pytestmark = pytest.mark.usefixtures("as_users_call")


@pytest.mark.parametrize(("switches", "message"), [
    ({"level": "Layer"}, "level must be one of 'layer', 'token', not 'Layer': did you mean 'layer'"),
    ({"path": "Line"}, "did you mean 'line'"),
    ({"concat": "zeros"}, "did you mean 'zero'"),
    ({"start": "Moved"}, "did you mean 'moved'"),
    ({"start": None}, "start must be one of 'independent', 'moved', not None"),
    ({"concat": 0}, "concat must be one of None, 'joined', 'zero'"),
    ({"tau": 80}, r"tau must lie in \[0, 1\], not 80"),
    ({"tau": Steps(80)}, r"tau must lie in \[0, 1\], not 80"),
    ({"tau": "0.5"}, "tau must be a number"),
    ({"inpaint_tau": -1}, "inpaint_tau must lie"),
    ({"gamma": 1.1}, "gamma must lie"),
    ({"eta": np.nan}, "eta must lie"),
    ({"shuffle": -0.1}, "shuffle must lie"),
    ({"coverage": 2}, "coverage must lie"),
    ({"guidance_inside": -1}, "guidance_inside must lie"),
    ({"outline": 4}, "outline must be an odd number"),
    ({"margin": -1}, "margin must be a whole number, 0 to 1024"),
    ({"margin": 1.5}, "margin must be a whole number"),
    ({"sweeps": -1}, "sweeps must be a whole number"),
])  # fmt: skip
def test_switches(switches, message):
    with pytest.raises(JaxpaError, match=message):
        Preset(**({"tau": 0.5} | switches))


@pytest.mark.parametrize("tau", [0.5, np.float32(0.5), jnp.float32(0.5), 1, Steps(np.float64(0.2))])
def test_numbers_of_any_type(tau):
    preset = replace(PRESETS["paper"], tau=tau)
    assert 0 <= schedule.tau_time(preset.tau, TIMES) <= 1


@pytest.mark.parametrize(("change", "message"), [
    ({"level": "Layer"}, "did you mean 'layer'"),
    ({"solver": "eular"}, "did you mean 'euler'"),
    ({"tau": jnp.float32(80)}, r"tau must lie in \[0, 1\], not 80"),
    ({"times": TASK.times[::-1]}, "times must fall"),
    ({"times": 1000 * TASK.times}, "times must lie in"),
    ({"trajectory": TASK.trajectory[:-1]},
     r"trajectory must be an array of floating-point numbers \(7, R, N, C\), not float32 \(6,"),
    ({"trajectory": jnp.zeros((7, 1, N - 2, C))}, r"x must be an array of floating-point numbers \(G, 18, 3\)"),
    ({"eta": jnp.ones(7)}, r"eta must be an array of floating-point numbers \(6,\)"),
    ({"eta": 2 * jnp.ones(6)}, "eta must lie"),
    ({"early": Phase(TASK.early.conditions, Routing(TASK.early.routing.source[1:]))},
     r"early.routing.source must be an array of whole numbers \(2, 20\), not int32 \(1, 20\)"),
    ({"early": Phase(TASK.early.conditions, Routing(TASK.early.routing.source + 30))},
     r"early.routing.source must lie in \[0, 39\]"),
])  # fmt: skip
def test_tasks(change, message):
    with pytest.raises(ValueError, match=message):
        personalize.sample(replace(TASK, **change), X)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: personalize.sample(TASK, BYTES), "x must be an array of floating-point numbers"),
    (lambda: routing.replacement_source(PLACED._replace(source=PLACED.source + N), 1), "placement.source must lie"),
    (lambda: routing.replacement_source(PLACED._replace(target=PLACED.target[:, 1:]), 1), "placement.target must"),
    (lambda: routing.reference_context(MASKS[:1, :-1], PLACED, 1, (H, W), "zero", N), r"masks must .*\(R, 20\)"),
    (lambda: routing.reference_context(MASKS[:1], PLACED, 1, (H, W), "zeros", N), "did you mean 'zero'"),
    (lambda: sampling.sample(toy(1), BYTES, TIMES), "x must be .*not uint8"),
    (lambda: sampling.sample(toy(1), X[0], TIMES), r"x must be .*\(B, N, C\), not float32 \(20, 3\)"),
    (lambda: sampling.sample(toy(1), X, TIMES[::-1]), "times must fall"),
    (lambda: sampling.sample(toy(1), X, 1000 * TIMES), "times must lie"),
    (lambda: sampling.sample(toy(1), X, TIMES, 0, 7), r"stop must lie in \[0, 6\], not 7"),
    (lambda: sampling.sample(toy(1), X, TIMES, 4, 3), r"start must lie in \[0, 3\], not 4"),
    (lambda: sampling.initial_noise(np.zeros(2), (N, C)), r"seeds must be an array of whole numbers \(B,\)"),
    (lambda: inversion.straight_line(BYTES, NOISE, TIMES), "x0 must be .*not uint8"),
    (lambda: inversion.straight_line(X, NOISE[:, 1:], TIMES), r"noise must .*\(1, 20, 3\), not float32 \(1, 19, 3\)"),
    (lambda: inversion.forward_times(TIMES, ask="End"), "did you mean 'end'"),
    (lambda: inversion.forward_times(TIMES[::-1]), "times must fall"),
    (lambda: inversion.official_forward_times(500 * TIMES), "times must lie"),
    (lambda: inversion.invert(toy(1), X, NOISE, FORWARD, 2.0), r"gamma must lie in \[0, 1\], not 2"),
    (lambda: inversion.invert(toy(1), X, NOISE, FORWARD, sweeps=1.5), "sweeps must be a whole number"),
    (lambda: inversion.invert(toy(1), X, NOISE, replace(FORWARD, width=FORWARD.width[1:])), "forward.width must be"),
    (lambda: inversion.follow_back(toy(1), X, TIMES[::-1]), "times must fall"),
    (lambda: inversion.control(0, 1.0), "steps must be a whole number, at least 1"),
    (lambda: inversion.control(6, 1.5), "eta must lie"),
    (lambda: tokens.patchify(np.zeros((1, 4, 4, 3), np.uint8)), r"latents must be .*\(B, 2h, 2w, C\), not uint8"),
    (lambda: tokens.unpatchify(np.zeros((1, 20, 8)), 4, 4), r"tokens must be .*\(B, 16, 4 C\), not float64"),
    (lambda: tokens.unpatchify(np.zeros((1, 16, 6)), 4, 4), "multiple of 4 channels, not 6"),
    (lambda: tokens.coverage(np.full((8, 8), 255, np.uint8), 4, 4), r"mask must lie in \[0, 1\], not 255"),
    (lambda: tokens.shift(np.ones(N, np.uint8), H, W, 0, 1), r"mask must be an array of bool \(20,\), not uint8"),
    (lambda: tokens.shuffle_windows(KEY, np.ones(N - 1, bool), H, W), "mask has the shape"),
    (lambda: tokens.shuffle_windows(KEY, np.ones(N, bool), H, W, strength=2), "strength must lie"),
    (lambda: tokens.dilate(np.ones(N - 1, bool), H, W, 3), "mask has the shape"),
    (lambda: tokens.perturb_mask(KEY, np.ones(N, bool), H, W, dilation=-1), "dilation must lie"),
    (lambda: tokens.pair(np.ones(N, bool), np.ones(N - 1, bool)), r"target must be .*\(20,\), not bool \(19,\)"),
    (lambda: tokens.restrict(PLACED, np.ones((1, N), int)), "mask must be an array of bool"),
    (lambda: tokens.compose(PLACED, np.arange(N) + 1), r"permutation must lie in \[0, 19\], not 20"),
    (lambda: tokens.gather(X, np.array([[0, N]])), r"index must lie in \[0, 19\], not 20"),
    (lambda: tokens.gather(X, np.array([[0.0]])), "index must be an array of whole numbers"),
    (lambda: schedule.flow_times(1.5, 64, ScheduleConfig()), "steps must be a whole number"),
    (lambda: schedule.flow_times(4, 0, ScheduleConfig()), "tokens must be a whole number, at least 1"),
    (lambda: schedule.steps_above(TIMES, 80), r"tau must lie in \[0, 1\], not 80"),
    (lambda: schedule.steps_above(TIMES[::-1], 0.5), "times must fall"),
    (lambda: schedule.tau_time([0.5], TIMES), "tau must be a number"),
])  # fmt: skip
def test_functions(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_shapes_are_told_while_tracing():
    with pytest.raises(ValueError, match=r"trajectory must be .*\(7, R, N, C\)"):
        jax.eval_shape(personalize.sample, replace(TASK, trajectory=TASK.trajectory[1:]), X)


def test_the_network_wants_flow_times():
    config = TransformerConfig(in_channels=C, num_layers=1, num_single_layers=1, num_attention_heads=1,
                               attention_head_dim=12, joint_attention_dim=4, pooled_projection_dim=4,
                               axes_dims_rope=(4, 4, 4))  # fmt: skip
    conditions = FluxConditions(np.zeros((1, 2, 4)), np.zeros((1, 4)), np.ones(1), tokens.grid_positions(H, W))
    velocity = conditions.bind(Flux(config, rngs=nnx.Rngs(0)))
    for x, t, message in (
        (X, np.array([500.0]), r"t must lie in \[0, 1\], from noise at 1 to data at 0, not 500"),
        (X, np.float32(0.5), r"t must be an array of floating-point numbers \(1,\), not float32 \(\)"),
        (BYTES, np.array([0.5]), "x must be .*not uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            velocity(x, t)
