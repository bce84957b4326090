"""The method against the official code's own numbers: masks, inversion, one forward, and whole samplings.

Every run is rebuilt from the switches its name states; a set named by JAXPA_GOLDENS has other sizes and masks.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpa.checkpoint.load import load_component
from jaxpa.config import ScheduleConfig
from jaxpa.encoders.autoencoder import Autoencoder
from jaxpa.inversion import closed_form, control, invert, official_forward_times, straight_line
from jaxpa.loops import stepped
from jaxpa.personalize import Phase, Task, task_run
from jaxpa.routing import reference_context, replacement_source
from jaxpa.schedule import flow_times
from jaxpa.tokens import (
    Placement,
    Routing,
    bounding_box,
    grid_positions,
    identity_source,
    nearest,
    pair,
    patchify,
    shift,
    unpatchify,
)
from jaxpa.transformer import FluxConditions, FluxVelocity

pytestmark = pytest.mark.usefixtures("as_users_compile")
# The official code on an older torch stack agrees with itself to 4e-6 a forward; over six steps of
# two rows the differences add up to about 1e-5 here. The closest two different runs differ by 0.026.
FORWARD, SAMPLING = 1e-4, 1e-4
INVERSION = 5e-5  # one row, and every step is damped by gamma; measured 1e-5
ENCODING = 1e-5  # relative to the largest value, as in test_goldens_vae.py


@pytest.fixture(scope="module")
def model(goldens):
    return load_component(goldens.path / "flux-dev-tiny" / "transformer", dtype=jnp.float32)


@pytest.fixture(scope="module")
def vae(goldens):
    return load_component(goldens.path / "flux-dev-tiny" / "vae", dtype=jnp.float32)


@pytest.fixture(scope="module")
def schedule_config(goldens):
    return ScheduleConfig.from_json(goldens.json("flux-dev-tiny/scheduler/scheduler_config.json"))


def test_masks(goldens):
    """The official token mask, and its shift by columns."""
    g = goldens.load("pa_masks.safetensors")
    keep, move = jax.jit(nearest, static_argnums=(1, 2)), jax.jit(shift, static_argnums=(1, 2))
    made = [key for key in g if key.startswith("create_mask/")]
    moved = [key for key in g if key.startswith("shift_tensor/")]
    assert set(g) == {"mask_image_u8", *made, *moved}
    assert made
    assert moved
    for key in made:
        h, w = g[key].shape
        np.testing.assert_array_equal(keep(g["mask_image_u8"], h, w).reshape(h, w) == 255, g[key] > 0)
    for key in moved:
        h, w = g[key].shape
        mask = jnp.asarray(g[f"create_mask/{h}x{w}"].reshape(-1) > 0)
        target = move(mask, h, w, 0, int(key.split("/")[1])).target
        np.testing.assert_array_equal(target.reshape(h, w), g[key] > 0)


def test_inputs(goldens, schedule_config):
    """What the runs with one reference start from: schedule, positions, and a mask moved by a whole box."""
    inputs = goldens.load("pa_inputs.safetensors")
    h, w = inputs["mask"].shape
    steps = len(inputs["timesteps"])
    times = flow_times(steps, h * w, schedule_config)
    close(times, inputs["sigmas"], 1e-6)
    close(times[:-1], inputs["timesteps"], 1e-6)
    np.testing.assert_array_equal(grid_positions(h, w), inputs["img_ids"])
    mask, target = (inputs[key].reshape(-1) > 0 for key in ("mask", "shift_mask"))
    here, there = bounding_box(mask, h, w), bounding_box(target, h, w)
    rows, cols = int(there.top - here.top), int(there.left - here.left)
    for got, want in zip(shift(jnp.asarray(mask), h, w, rows, cols), pair(mask, target), strict=True):
        np.testing.assert_array_equal(got, want)


def test_reference_latents(vae, goldens):
    """Pictures to bytes to [-1, 1] to packed latents, with the draw of the posterior that the official code made."""
    g = goldens.load("pa_inversion.safetensors")
    encode = jax.jit(Autoencoder.encode)
    names = {key.split("/")[0] for key in g if re.match(r"ref\d+/", key)}
    assert names
    for name in names:
        image = np.moveaxis(g[f"{name}/image"], 1, -1)
        np.testing.assert_array_equal(g[f"image{name[3:]}_u8"][None] / np.float32(127.5) - 1, image)
        posterior = encode(vae, image)
        z = posterior.mean + jnp.exp(0.5 * posterior.logvar) * np.moveaxis(g[f"{name}/posterior_eps"], 1, -1)
        want = g[f"{name}/image_latents"]
        close(patchify((z - vae.config.shift_factor) * vae.config.scaling_factor), want,
              ENCODING * max(1.0, np.abs(want).max()))  # fmt: skip


def test_inversion(model, goldens, schedule_config):
    """Every step of the controlled forward ODE, the model's answers, and the closed form where gamma is 1."""
    g, inputs = goldens.load("pa_inversion.safetensors"), goldens.load("pa_inputs.safetensors")
    multi = goldens.load("pa_multi.safetensors")
    times = flow_times(len(g["sigmas"]) - 1, g["ref0/image_latents"].shape[1], schedule_config)
    close(times, g["sigmas"], 1e-6)
    forward = official_forward_times(times)
    text = jnp.asarray(g["source_prompt_embeds"]), jnp.asarray(g["source_pooled"])
    velocity = FluxConditions(*text, jnp.zeros(1), jnp.asarray(g["img_ids"])).bind(model)
    run = jax.jit(lambda velocity, x0, noise, gamma: invert(velocity, x0, noise, forward, gamma))
    ask = jax.jit(lambda velocity, y, t: velocity(y, t[None]))
    runs = [key.removesuffix("/inverted_latents") for key in g if key.endswith("/inverted_latents")]
    assert {name.split("gamma")[1] for name in runs} >= {"1.0", "0.5"}
    for name in runs:
        ref, gamma = name.split("/gamma")
        x0, noise = jnp.asarray(g[f"{ref}/image_latents"]), jnp.asarray(g[f"{ref}/noise_y1"])
        close(forward.model, g[f"{name}/timesteps_in"], 1e-6)
        states = run(velocity, x0, noise, float(gamma))
        close(states[-1], g[f"{name}/inverted_latents"], INVERSION)
        if f"{name}/Y_steps" in g:
            close(states[:, 0], g[f"{name}/Y_steps"], INVERSION)
            for y, t, want in zip(states, forward.model, g[f"{name}/u_steps"], strict=False):
                close(ask(velocity, y, t)[0], want, FORWARD)
        number = int(ref[3:])
        if float(gamma) == 1.0:
            close(closed_form(x0, noise, forward), g[f"{name}/inverted_latents"], 1e-5)
            close(states[-1][0], multi["inverted_latents"][number], INVERSION)
            np.testing.assert_array_equal(x0[0], multi["image_latents"][number])
        if number == 0:  # the reference of every run with one
            suffix = "" if float(gamma) == 1.0 else f"_gamma{gamma}"
            close(states[-1], inputs[f"inverted_latents{suffix}"], INVERSION)
            np.testing.assert_array_equal(x0, inputs["image_latents"])


def placement_of(mask: np.ndarray, target: np.ndarray) -> Placement:
    """Token masks (R, h, w) of references and targets -> stacked placements."""
    cells = [
        (jnp.asarray(m.reshape(-1) > 0), jnp.asarray(t.reshape(-1) > 0)) for m, t in zip(mask, target, strict=True)
    ]
    pairs = [pair(m, t) for m, t in cells]
    return Placement(*(jnp.stack(x) for x in zip(*pairs, strict=True)))


def routings(masks: np.ndarray, targets: np.ndarray, variant: str, padding: bool = False) -> tuple[Routing, Routing]:
    """Routing above and below tau of a variant of the official code (or of the paper's gated one).

    padding: nothing is attended to as a context that is all padding, which the program of the other variants takes.
    """
    references, h, w = masks.shape
    n = h * w
    placement = placement_of(masks, targets)
    plain = identity_source(references + 1, n)
    replaced = plain if variant == "no_processor" else replacement_source(placement, 1)
    if variant in ("none", "no_processor") and not padding:
        return Routing(replaced), Routing(plain)
    where = "target" if variant == "concat_target" else "zero"
    size = n * references  # padded on purpose: what is not valid must not matter
    attended = jnp.asarray(masks.reshape(references, n) > 0) & variant.startswith(("concat", "paper"))
    context = reference_context(attended, placement, 1, (h, w), where, size)
    gated = context._replace(length=jnp.where(variant == "paper_gated", n, context.length))
    return Routing(replaced, **gated._asdict()), Routing(plain, **context._asdict())


def bind(model, inputs, guidance: float) -> FluxVelocity:
    rows = inputs["prompt_embeds"].shape[0]
    text = jnp.asarray(inputs["prompt_embeds"]), jnp.asarray(inputs["pooled"])
    return FluxConditions(*text, jnp.full((rows,), guidance), jnp.asarray(inputs["img_ids"])).bind(model)


def test_one_forward(model, goldens):
    """Outputs and the image stream after every block, replaced or not, with each kind of concatenation."""
    g, inputs = goldens.load("pa_forward.safetensors"), goldens.load("pa_inputs.safetensors")
    velocity = bind(model, inputs, 3.5)
    see = lambda trace: (trace.img, trace.txt[:, :8])  # noqa: E731
    run = jax.jit(lambda velocity, x, t, routing: velocity(x, t, routing, see))
    names = sorted(key.removesuffix("/out") for key in g if key.endswith("/out"))
    assert names
    for name in names:
        gate, variant = name.split("/")
        early, late = routings(inputs["mask"][None], inputs["shift_mask"][None], variant, padding=True)
        t = float(re.match(r"t([\d.]+)_", gate).group(1))
        routing = early if gate.endswith("_replaced") and "not" not in gate else late
        out, traces = run(velocity, g["latents"], jnp.full((2,), t), routing)
        close(out, g[f"{name}/out"], FORWARD)
        for key in (k for k in g if k.startswith(f"{name}/") and not k.endswith("/out")):
            kind, number, what = re.match(r".*/(double|single)(\d+)/(img|txt_first8)$", key).groups()
            trace = traces[kind == "single"][what != "img"]
            close(trace[int(number)], g[key], FORWARD)


def make_task(inputs, velocity, routing: tuple[Routing, Routing], tau: float, eta, inverted: str) -> Task:
    times = jnp.asarray(inputs["sigmas"])
    path = straight_line(jnp.asarray(inputs["image_latents"]), jnp.asarray(inputs[inverted]), times)
    early, late = (Phase(velocity, r) for r in routing)
    return Task(path, jnp.asarray(eta), times, jnp.float32(tau), early, late)


def run_task(task: Task, x: np.ndarray) -> np.ndarray:
    """All rows after every step: (S, R + G, N, C)."""
    states = [progress.state for progress in stepped(task_run(task, x))]
    return np.stack([np.concatenate([state.references, state.images]) for state in states])


def check_velocity(task: Task, x: np.ndarray, after: np.ndarray, want: np.ndarray) -> None:
    """What the model answered at every step, from the states that the steps went through."""
    before = [np.concatenate([task.trajectory[0], x]), *after[:-1]]
    ask = jax.jit(lambda phase, x, t: phase.conditions(x, jnp.broadcast_to(t, x.shape[:1]), phase.routing))
    for i, rows in enumerate(before):
        phase = task.early if task.times[i] > task.tau else task.late
        close(ask(phase, rows, task.times[i]), want[i], FORWARD)


def cases(goldens) -> list[tuple[str, dict]]:
    """Every stored run of pa_single and the switches that its name states."""
    found = []
    for key in goldens.load("pa_single.safetensors"):
        if not key.endswith("/step_latents"):
            continue
        name = key.removesuffix("/step_latents")

        def number(pattern, default, name=name):
            match = re.search(pattern, name)
            return float(match.group(1)) if match else default

        variants = ("concat_target", "concat_zero", "paper_gated", "no_processor")
        variant = next((v for v in variants if v in name), "none")
        found.append((name, {
            "variant": variant, "tau": number(r"tau([\d.]+)", 1.0), "eta": number(r"eta([\d.]+)", 1.0),
            "guidance": number(r"/g([\d.]+)", 3.5), "start": number(r"start([\d.]+)", 0.0),
            "stop": number(r"stop([\d.]+)", 0.99), "decay": number(r"power([\d.]+)", None),
            "inplace": name.startswith("inpaint"),
            "inverted": "inverted_latents_gamma0.5" if "gamma0.5" in name else "inverted_latents",
        }))  # fmt: skip
    return found


def test_sampling(model, vae, goldens):
    """Both rows of every run with one reference, after every step; velocities and the picture where they are stored."""
    g, inputs = goldens.load("pa_single.safetensors"), goldens.load("pa_inputs.safetensors")
    runs = cases(goldens)
    assert {s["variant"] for _, s in runs} >= {"none", "concat_zero", "paper_gated"}
    worst = {}
    for name, s in runs:
        target = inputs["mask"] if s["inplace"] else inputs["shift_mask"]
        routing = routings(inputs["mask"][None], target[None], s["variant"])
        eta = control(len(inputs["timesteps"]), s["eta"], s["start"], s["stop"], s["decay"])
        task = make_task(inputs, bind(model, inputs, s["guidance"]), routing, s["tau"], eta, s["inverted"])
        out = run_task(task, inputs["new_noise"])
        worst[name] = np.abs(out - g[f"{name}/step_latents"]).max()
        if f"{name}/noise_pred" in g:
            check_velocity(task, inputs["new_noise"], out, g[f"{name}/noise_pred"])
        if f"{name}/image" in g:
            picture = jax.jit(Autoencoder.decode_latents)(vae, unpatchify(jnp.asarray(out[-1]), *inputs["mask"].shape))
            close(jnp.moveaxis(picture, -1, 1), g[f"{name}/image"], SAMPLING)
    assert max(worst.values()) < SAMPLING, worst


def test_several_references(model, goldens):
    """All rows of every run with two references, on targets apart and overlapping, after every step."""
    g, single = goldens.load("pa_multi.safetensors"), goldens.load("pa_inputs.safetensors")
    inputs = {**single, **g}  # schedule and positions are those of the runs with one
    runs = [key.removesuffix("/step_latents") for key in g if key.endswith("/step_latents")]
    assert any(name.startswith("overlap/") for name in runs)
    velocity = bind(model, inputs, 3.5)
    worst = {}
    for name in runs:
        tau, eta, variant = re.fullmatch(r"(?:overlap/)?tau([\d.]+)/eta([\d.]+)/(\w+)", name).groups()
        targets = g["overlap_shift_masks" if name.startswith("overlap/") else "shift_masks"]
        held = control(len(inputs["timesteps"]), float(eta))
        routing = routings(g["masks"], targets, variant, padding=True)
        task = make_task(inputs, velocity, routing, float(tau), held, "inverted_latents")
        out = run_task(task, g["new_noise"])
        worst[name] = np.abs(out - g[f"{name}/step_latents"]).max()
    assert max(worst.values()) < SAMPLING, worst


def close(got, want, atol):
    np.testing.assert_allclose(np.asarray(got), want, atol=atol, rtol=0)
