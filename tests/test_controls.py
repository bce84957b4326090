"""Everyday controls against diffusers: a schedule of one's own, image to image, and what decides of skipped steps."""

import numpy as np
import pytest
from PIL import Image
from sister_reference import error, load_reference, make_sister

import jaxpa
from jaxpa.config import FluxConfig, ScheduleConfig, Settings
from jaxpa.devices.plan import run_of
from jaxpa.errors import JaxpaError
from jaxpa.request.groups import Sampling
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec
from jaxpa.sampling import at, prepare

PROMPT, STEPS, SIZE = "a striped red cat on a beach", 6, (80, 96)
LATENTS = 2e-5  # shares of the largest value
OWN = (0.95, 0.6, 0.55, 0.1)


@pytest.fixture(scope="module")
def both(torch, tmp_path_factory):
    """A small random FLUX by either library."""
    folder = make_sister(tmp_path_factory.mktemp("controls") / "text", "text")
    return jaxpa.load(folder), load_reference(folder, "text")


def picture(seed: int, size=SIZE) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


def ours(pipe: jaxpa.Pipeline, **words) -> np.ndarray:
    request = Request.of(PROMPT, **words)
    return np.concatenate(list(pipe.sample_generated(request, pipe.prepare(request))))  # type: ignore[arg-type]


@pytest.mark.parametrize("shift", [None, 1.0, 3.0, 0.4])
@pytest.mark.parametrize("sigmas", [None, OWN])
def test_schedules(torch, shift, sigmas):
    """The reference's scheduler shifts the sigmas that it is given; without a shift ours stay as they are."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    spec, grid = Spec(FluxConfig(scheduler=ScheduleConfig()), Settings()), (32, 48)
    got = Sampling(steps=None if sigmas else STEPS, sigmas=sigmas, shift=shift).times(spec, grid)
    even = list(np.linspace(1.0, 1 / STEPS, STEPS))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0 if shift is None else shift)
    scheduler.set_timesteps(sigmas=even if sigmas is None else list(sigmas))
    if shift is sigmas is None:  # the checkpoint's own, by the canvas
        np.testing.assert_array_equal(got, spec.times(STEPS, grid))
        return
    np.testing.assert_allclose(got, scheduler.sigmas.numpy(), atol=1e-6)
    if shift is not None:  # F = e^mu
        scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        scheduler.set_timesteps(sigmas=even if sigmas is None else list(sigmas), mu=np.log(shift))
        np.testing.assert_allclose(got, scheduler.sigmas.numpy(), atol=1e-6)


def test_a_schedule_of_ones_own_end_to_end(both, torch):
    """As the reference's pipeline has it with `sigmas`, under a scheduler that shifts nothing."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe, reference = both
    before, reference.scheduler = reference.scheduler, FlowMatchEulerDiscreteScheduler(shift=1.0)
    noise = torch.tensor(np.array(pipe.noise(np.array([3]), pipe.grid(*SIZE))))
    with torch.no_grad():
        want = reference(
            prompt=PROMPT, sigmas=list(OWN), height=SIZE[0], width=SIZE[1], max_sequence_length=32, latents=noise,
            guidance_scale=pipe.settings.guidance, output_type="latent",
        ).images.numpy()  # fmt: skip
    reference.scheduler = before
    words = {"seed": 3, "height": SIZE[0], "width": SIZE[1]}
    assert error(ours(pipe, sigmas=OWN, **words), want) < LATENTS
    assert error(ours(pipe, steps=len(OWN), **words), want) > 1e-2


@pytest.mark.parametrize("strength", [1.0, 0.6, 0.05])
def test_image_to_image_equals_the_references(both, torch, monkeypatch, strength):
    """From our noise: the reference draws its own, so its generator's is exchanged."""
    from diffusers import FluxImg2ImgPipeline
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from diffusers.pipelines.flux import pipeline_flux_img2img as module

    pipe, reference = both
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    grid = pipe.grid(*SIZE)
    noise = np.array(pipe.noise(np.array([5]), grid)).reshape(1, *grid, -1, 2, 2)
    unpacked = torch.tensor(noise.transpose(0, 3, 1, 4, 2, 5).reshape(1, -1, 2 * grid[0], 2 * grid[1]))
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: unpacked)
    theirs = FluxImg2ImgPipeline(**reference.components)
    theirs.set_progress_bar_config(disable=True)
    with torch.no_grad():
        want = theirs(
            prompt=PROMPT, image=picture(1), strength=strength, num_inference_steps=STEPS, height=SIZE[0],
            width=SIZE[1], max_sequence_length=32, guidance_scale=pipe.settings.guidance, output_type="latent",
        ).images.numpy()  # fmt: skip
    words = {"steps": STEPS, "seed": 5, "height": SIZE[0], "width": SIZE[1]}
    assert error(ours(pipe, image=picture(1), strength=strength, **words), want) < LATENTS
    assert run_of(Request.of(PROMPT, image="a.png", strength=strength, **words), pipe.spec).steps == max(
        1, int(np.ceil(STEPS * strength))
    )


def test_the_picture_gives_the_canvas(both):
    """Its aspect and the checkpoint's area, unless something is said; strength 1 is the noise alone."""
    pipe = both[0]
    request = Request.of(PROMPT, image=picture(1, (160, 320)), strength=0.5)
    assert pipe.prepare(request).canvas == pipe.spec.canvas((320, 160))
    words = {"steps": 2, "seed": 5, "height": SIZE[0], "width": SIZE[1]}
    alone, whole = ours(pipe, **words), ours(pipe, image=picture(1), strength=1.0, **words)
    assert error(whole, alone) < 1e-6
    with pytest.raises(JaxpaError, match="strength 0 leaves none of the 2 steps"):
        ours(pipe, image=picture(1), strength=0, **words)


def test_what_decides_of_skipped_steps(both, torch):
    """TeaCache's: the first block's modulated input, as the reference's own first norm gives it."""
    pipe, reference = both
    noise, times = pipe.noise(np.array([3]), pipe.grid(*SIZE)), pipe.times(STEPS, pipe.grid(*SIZE))
    seen = []
    hook = reference.transformer.transformer_blocks[0].norm1.register_forward_hook(lambda *a: seen.append(a[2][0]))
    with torch.no_grad():
        reference(
            prompt=PROMPT, num_inference_steps=STEPS, height=SIZE[0], width=SIZE[1], max_sequence_length=32,
            latents=torch.tensor(np.array(noise)), guidance_scale=pipe.settings.guidance, output_type="latent",
        )  # fmt: skip
    hook.remove()
    velocity = pipe.velocity(pipe.encode_text([PROMPT]), height=SIZE[0], width=SIZE[1])
    got = at(prepare(velocity, times), 0).glance(noise, times[:1])
    assert error(got, seen[0].numpy()) < LATENTS
    assert error(velocity.glance(noise, times[:1]), seen[0].numpy()) < LATENTS
