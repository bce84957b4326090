"""Networks that take turns in memory: who is loaded when, who is gone, and the same pictures."""

import gc
import json
import weakref

import jax
import numpy as np
import pytest

import jaxpa
from jaxpa.batch.worker import Worker
from jaxpa.batching import Size
from jaxpa.checkpoint import load as loading
from jaxpa.cli.lines import read_jobs
from jaxpa.config import FluxConfig, flux_dev
from jaxpa.devices import cost, memory, plan
from jaxpa.devices.memory import Held, Load, peak_bytes, stage_bytes
from jaxpa.media.subjects import Subject

PROMPTS = ["a red car", "a cat"]


@pytest.fixture
def watched(monkeypatch):
    """A staged pipeline, and what it loads: names in order, and at each load the names of what is still in memory."""
    loads, alive = [], {}
    real = loading._load

    def load(part, *rest):
        gc.collect()
        held = {name for name, arrays in alive.items() if any(array() is not None for array in arrays)}
        loads.append((part.name, held))
        network = real(part, *rest)
        alive[part.name] = [weakref.ref(array) for array in jax.tree.leaves(network)]
        return network

    monkeypatch.setattr(loading, "_load", load)
    pipe = jaxpa.load("mini", resident=False)
    assert not loads
    assert pipe.dtype == np.float32
    return pipe, loads


def pixels(pictures):
    return np.stack([np.asarray(each) for each in pictures])


def subject():
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 32), np.float32)
    mask[8:24, 8:24] = 1
    return Subject(rng.uniform(0, 255, (32, 32, 3)).astype(np.uint8), mask=mask, caption="a dog")


def test_pictures_of_prompts(watched):
    """Two batches, and each network is loaded once."""
    pipe, loads = watched
    said = {"num_images": 4, "batch_size": 2, "steps": 2, "height": 48, "width": 48}
    seen: list[tuple] = []
    made = pipe.generate(PROMPTS, **said, on_step=lambda step: seen.append(step[:3]))
    assert seen[:3] == [("encode", 1, 2), ("encode", 2, 2), ("sample", 1, 2)]
    assert [name for name, _ in loads] == ["text_encoder_2", "text_encoder", "transformer", "vae"]
    for name, held in loads:
        assert held <= {"text_encoder_2"} if name.startswith("text") else not held, (name, held)
    np.testing.assert_array_equal(pixels(made), pixels(jaxpa.load("mini", resident=True).generate(PROMPTS, **said)))


@pytest.mark.parametrize("path", ["line", "ode"])
def test_pictures_with_a_subject(watched, path):
    pipe, loads = watched
    said = {"steps": 2, "height": 48, "width": 48, "path": path, "num_images": 2, "batch_size": 1}
    made = pipe.personalize("a red car", [subject()], **said)
    names = [name for name, _ in loads]
    assert names == ["text_encoder_2", "text_encoder", "vae", "transformer", "vae"]
    assert all(not held for name, held in loads if not name.startswith("text"))
    np.testing.assert_array_equal(
        pixels(made), pixels(jaxpa.load("mini", resident=True).personalize("a red car", [subject()], **said))
    )


def test_lines_of_a_batch(watched, tmp_path, pictures):
    """Pictures that wait for their batch hold no network, though others are encoded meanwhile."""
    pipe, loads = watched
    flags = "--height 48 --width 48 --steps 2 --no-figure"
    (tmp_path / "jobs.txt").write_text("".join(
        f"personalize --subject {pictures}/{name}.png --mask {pictures}/{name}-mask.png {flags} --prompt 'a {name}' "
        f"--path line --out {name}.png\n" for name in ("car", "mug")
    ))  # fmt: skip
    failed: list[object] = []
    jobs = read_jobs(str(tmp_path / "jobs.txt"))
    worker = Worker(pipe, Size(2, 2), lambda outcome: failed.append(outcome.error))
    worker.run((job, job.command) for job in jobs)
    assert failed == [None, None]
    assert [name for name, _ in loads].count("transformer") == 1
    assert all(not held for name, held in loads if not name.startswith("text"))


def test_who_stays(monkeypatch):
    """All networks, if they fit; an answer of the user's goes first."""
    source = loading.resolve("mini")
    whole = sum(cost.weight_bytes(source.config, 4).values())
    for have, stay in ((100 * whole + 2**30, True), (whole, False), (None, True)):
        for module in (memory, plan):
            monkeypatch.setattr(module, "machine_bytes", lambda have=have: have)
        assert jaxpa.load("mini").parts.resident == stay
        assert jaxpa.load("mini", resident=not stay).parts.resident != stay


def test_what_stages_take():
    """FLUX.1-dev in bfloat16: the transformer and little else; T5 fits 16 GB with it, in eight bits."""
    load = Load(FluxConfig(transformer=flux_dev().transformer), (64, 64), 512, 1, 0, 1, *Held(2, resident=False))
    stages = stage_bytes(load, "gpu")
    assert peak_bytes(load, "gpu") == max(stages.values()) == stages["sample"]
    weights = cost.weight_bytes(load.config, 2)
    assert weights["transformer"] < stages["sample"] < 24.0 * 2**30
    together = peak_bytes(Load(load.config, (64, 64), 512, 1, itemsize=2), "gpu")
    assert together > stages["sample"] + weights["text_encoder_2"]


def test_the_command(run, tmp_path):
    words = ["generate", "--prompt", "a red car", "--steps", 2, "--out"]
    for choice in ("yes", "no"):
        assert run(*words, tmp_path / f"{choice}.png", "--keep-resident", choice)[0] == 0
    assert (tmp_path / "yes.png").read_bytes() == (tmp_path / "no.png").read_bytes()
    planned = {choice: json.loads(run("plan", "--json", "--keep-resident", choice)[1]) for choice in ("yes", "no")}
    assert planned["no"]["memory_bytes"] < planned["yes"]["memory_bytes"]
    assert (planned["no"]["resident"], planned["yes"]["resident"]) == (False, True)
