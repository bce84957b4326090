"""What a request will cost, from a checkpoint's headers alone: memory, sample-forwards, FLOPs."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpa.checkpoint.load import default_dtype, settings_of
from jaxpa.checkpoint.source import Source
from jaxpa.config import Asked, FluxConfig
from jaxpa.devices import cost
from jaxpa.devices.memory import (
    GIB,
    SHARE,
    Held,
    Load,
    activation_bytes,
    batch_that_fits,
    machine_bytes,
    peak_bytes,
    require,
    result_bytes,
    stage_bytes,
    transformer_bytes,
)
from jaxpa.presets import Preset, asks_network
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec
from jaxpa.routing import block_taus
from jaxpa.schedule import count_above
from jaxpa.solvers import evaluations

REDUX_TOKENS = 27 * 27  # of an image prompt: SigLIP's patches of 14 pixels at 384 x 384


@dataclass(frozen=True, eq=False)
class Run:
    """A request on a checkpoint, in numbers.

    grid: (h, w) in tokens; text: tokens; times: (S + 1,); gates: a flow time for each tau; images: how many at each
    tau; inversion: its forwards for each reference; context: tokens that are attended to after tau; guided: whether an
    image takes two forwards a step; preset: None without references; beside: tokens of a picture in every sequence;
    pictures: that the network itself reads.
    """

    spec: Spec
    grid: tuple[int, int]
    text: int
    times: np.ndarray
    gates: list[float]
    images: int
    references: int
    inversion: int
    context: int
    guided: bool
    preset: Preset | None
    beside: int = 0
    pictures: int = 0

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    @cached_property
    def above(self) -> list[int]:
        """The steps that start above each tau."""
        return [count_above(self.times, gate) for gate in self.gates]

    @property
    def level(self) -> cost.Level:
        return "layer" if self.preset is None else self.preset.level

    @property
    def after_tau(self) -> tuple[int, int]:
        """The references' tokens that are a part of an image's own sequence then, and those in rows of their own."""
        joined = self.preset is not None and self.preset.concat == "joined"
        return (self.context, 0) if joined else (0, self.context)

    def load(self, images: int, held: Held, platform: str) -> Load:
        """What the device holds while `images` are sampled together, before or after tau, whichever is more.

        Pictures are encoded one by one.
        """
        own, (longer, context) = images * (1 + self.guided), self.after_tau
        early = own + self.references * (self.level == "layer")
        late = own + self.references * (context > 0)
        sides = (
            Load(self.spec.config, self.grid, self.text, rows, seen, 1, *held, beside=self.beside + more)
            for rows, seen, more in ((early, 0, 0), (late, context, longer))
        )
        return max(sides, key=lambda load: transformer_bytes(load, platform))


def run_of(request: Request, spec: Spec, canvas: tuple[int, int] | None = None) -> Run:
    """The numbers of a request; canvas: (height, width), if a picture decides it. Raises JaxpaError."""
    said = request.sampling
    grid = spec.grid(*(canvas or (said.height, said.width)))
    times, n = request.times(spec, grid), grid[0] * grid[1]
    images = len(said.seeds(request.prompt_count)) * max(1, len(request.places))
    guided, text = request.guided(spec), spec.settings.max_length
    text += REDUX_TOKENS if request.image_prompt is not None else 0
    read, beside = _read(request, spec, grid)
    if not request.riding(spec):
        return Run(spec, grid, text, times, [1.0], images, 0, 0, 0, guided, None, beside, read)
    preset = request.switches(spec)
    # The references ride along until the lowest tau of a block.
    gates = [float(block_taus(tau, preset.tau_blocks, times, spec.blocks).min()) for tau in request.taus(spec)]
    inversion, context = len(times) - 1 if asks_network(preset) else 0, request.references * n * bool(preset.concat)
    if preset.path == "ode":  # RF inversion is defined by its Euler steps
        euler = said.solver == "euler"
        inversion = inversion * (1 + preset.sweeps) if euler else evaluations(said.solver, inversion)
    r = request.references
    return Run(spec, grid, text, times, gates, images, r, inversion, context, guided, preset, beside, read)


def _read(request: Request, spec: Spec, grid: tuple[int, int]) -> tuple[int, int]:
    """How many pictures the network itself reads, and their tokens in every sequence."""
    if request.verb == "edit":  # the picture is as large as the canvas, or of the checkpoint's own size
        h, w = grid if request.sampling.height is request.sampling.width is None else spec.grid()
        return 1, h * w
    return int(request.following is not None or request.references > request.riding(spec)), 0


class Work(NamedTuple):
    """forwards: rows of tokens that pass the network; flop: in all, those for texts and pictures among them."""

    forwards: int
    flop_per_forward: float
    flop: float


def _work_of(request: Request, run: Run, config: FluxConfig) -> Work:
    """What the networks do for a request with every tau."""
    r, n, images = run.references, run.tokens, run.images
    longer, context = run.after_tau

    def rows(above: int, steps: int) -> int:
        late = context > 0 and above < steps
        asked = cost.sample_forwards(above, steps, r, images, run.level, late, guided=run.guided)
        return asked * evaluations(request.sampling.solver, 1)

    early = sum(rows(above, above) for above in run.above)
    late = sum(rows(0, run.steps - above) for above in run.above)
    inverted = r * run.inversion
    forward = cost.transformer_flops(config.transformer, n + run.beside, run.text)
    flop = (early + inverted) * forward
    flop += late * cost.transformer_flops(config.transformer, n + longer + run.beside, run.text, context)
    text = cost.t5_flops(config.text_encoder_2, run.spec.settings.max_length) + cost.clip_flops(config.text_encoder)
    height, width = (side * run.spec.cell for side in run.grid)
    pictures = (r + run.pictures) * cost.autoencoder_flops(config.vae, height, width, "encode")
    pictures += len(run.gates) * images * cost.autoencoder_flops(config.vae, height, width, "decode")
    texts = 1 + r + run.guided + (request.method.surroundings is not None)
    return Work(early + late + inverted, forward, flop + texts * text + pictures)


def images_together(request: Request, run: Run, held: Held, platform: str) -> int:
    """How many images are sampled together: as the request says, or as many as fit; 0 if not even one does.

    All places of a seed share a batch.
    """
    places = max(1, len(request.places))
    if request.sampling.batch_size is not None:
        return min(run.images, max(places, request.sampling.batch_size))
    fits = batch_that_fits(lambda count: run.load(count * places, held, platform), run.images // places, platform)
    return fits * places


def images_of(request: Request, together: int) -> int:
    """How many images a program draws where at most so many are sampled together: all places of some seeds."""
    places, seeds = max(1, len(request.places)), len(request.sampling.seeds(request.prompt_count))
    return places * min(seeds, max(1, together // places))


def held_of(
    source: Source, dtype: Any = None, weights: Asked | None = None, resident: bool | None = None, over: int = 1
) -> Held:
    """How a checkpoint's networks are held, with the LoRAs and the FLUX.1-Redux beside them.

    resident None: together, if they fit beside two images of its own size. over: how many devices share the weights.
    """
    spec = Spec(source.config, settings_of(source))
    itemsize = np.dtype(default_dtype() if dtype is None else dtype).itemsize
    redux = 0 if source.redux is None else source.redux.parameters
    held = Held(itemsize, source.rounded(weights), kept=kept_of(source), redux=redux)
    if resident is None:
        load = Load(spec.config, spec.grid(), spec.settings.max_length, 2, 0, 1, *held)
        have = machine_bytes()
        resident = have is None or peak_bytes(load, jax.devices()[0].platform) <= SHARE * have * over
    return held._replace(resident=resident)


def all_stay(source: Source, dtype: Any, weights: Asked | None, over: int) -> bool:
    """Whether all networks of a checkpoint stay in memory, if nobody says; see `held_of`. Of a faulty one: yes."""
    return bool(source.faults()) or held_of(source, dtype, weights, over=over).resident  # faults are refused later


def kept_of(source: Source) -> int:
    """How many numbers stay beside a checkpoint's weights, of LoRAs that are not merged into them."""
    return 0 if source.adaptation is None else source.adaptation.kept


def require_memory(content: dict[str, Any]) -> None:
    """Raise JaxpaError, with both numbers, if a plan needs more memory than this machine has."""
    c = content
    what = f"{c['images']:,} x {c['width']} x {c['height']} pixels, {c['batch_size']:,} at a time,"
    require(
        c["memory_bytes"], what, "make fewer images, or smaller ones" + ", or say --keep-resident no" * c["resident"]
    )


def plan(
    source: Source,
    request: Request,
    dtype: Any = None,
    canvas: tuple[int, int] | None = None,
    weights: Asked | None = None,
    resident: bool | None = None,
) -> dict[str, Any]:
    """The cost of a request with every tau, seed and place; canvas: (height, width), if a picture decides it.

    sample_forwards counts rows of tokens that pass the network; classifier-free guidance takes two for an image.
    batch_size is the number of images that are sampled together, and memory_bytes what they take (`devices.memory`);
    this includes the finished pictures if they share the device's memory. Where the request has a `cache`, forwards and
    work are at most these. Raises JaxpaError.
    """
    run = run_of(request, Spec(source.config, settings_of(source)), canvas)
    rounding, kind = source.rounded(weights), np.dtype(default_dtype() if dtype is None else dtype)
    return {
        "model": source.name,
        "dtype": kind.name,
        "weights": rounding.transformer,
        "text_weights": rounding.text_encoder_2,
        "device": jax.devices()[0].device_kind,
        **_facts(run),
        **_forwards(_work_of(request, run, source.config)),
        "weight_bytes": cost.weight_bytes(source.config, kind.itemsize, rounding),
        **_memory(request, run, held_of(source, dtype, weights, resident)),
    }


def _facts(run: Run) -> dict[str, Any]:
    """What is drawn, and in how many steps."""
    height, width = (side * run.spec.cell for side in run.grid)
    return {
        "height": height,
        "width": width,
        "variant": run.spec.variant.name,
        "drawn_by": "token replacement" if run.references else run.spec.variant.title,
        "image_tokens": run.tokens,
        "picture_tokens": run.beside,
        "text_tokens": run.text,
        "steps": run.steps,
        "references": run.references,
        "images": run.images * len(run.gates),
        "level": run.level if run.references else None,
        "tau": run.gates if run.references else [],
        "steps_above_tau": run.above,
        "inversion_steps": run.inversion,
    }


def _forwards(work: Work) -> dict[str, Any]:
    return {
        "sample_forwards": work.forwards,
        "tflop_per_forward": work.flop_per_forward / 1e12,
        "tflop": work.flop / 1e12,
    }


def _memory(request: Request, run: Run, held: Held) -> dict[str, Any]:
    """What is sampled together, and what that takes on this machine."""
    platform = jax.devices()[0].platform
    together = max(1, images_together(request, run, held, platform))
    load = run.load(together, held, platform)
    results = result_bytes(load, run.images * len(run.gates)) if platform == "cpu" else 0
    return {
        "lora_bytes": held.kept * held.itemsize,
        "redux_bytes": held.redux * held.itemsize,
        "resident": held.resident,
        "stage_bytes": stage_bytes(load, platform),
        "batch_size": together,
        "activation_bytes": activation_bytes(load, platform),
        "memory_bytes": peak_bytes(load, platform) + results,
        "machine_bytes": machine_bytes(),
    }


def _of(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def format_plan(content: dict[str, Any]) -> str:
    """The dictionary of `plan`, as a small table."""
    c, gib = content, GIB
    tau = "".join(f", {a} of them above tau {t:.3g}" for a, t in zip(c["steps_above_tau"], c["tau"], strict=False))
    inversion = f", {c['inversion_steps']} of inversion" if c["inversion_steps"] else ""
    rows = {
        "model": f"{c['model']}, {c['dtype']}{', blocks ' + c['weights'] if c['weights'] else ''} on {c['device']}",
        "input": f"{_of(c['references'], 'reference')}, {_of(c['images'], 'image')} of {c['width']} x {c['height']}: "
        f"{c['image_tokens']} image + {c['text_tokens']} text tokens"
        + (f" + {c['picture_tokens']} of the picture that is changed" if c["picture_tokens"] else ""),
        "steps": f"{c['steps']}{tau}{inversion}",
        "forwards": f"{c['sample_forwards']} sample-forwards of {c['tflop_per_forward']:.4g} TFLOP",
        "work": f"{c['tflop']:.4g} TFLOP in all, text and pictures included",
        "memory": f"{c['memory_bytes'] / gib:.2f} GiB: weights {sum(c['weight_bytes'].values()) / gib:.2f}"
        f"{'' if c['resident'] else ' that take turns'}, "
        f"{'LoRAs ' + format(c['lora_bytes'] / gib, '.2f') + ', ' if c['lora_bytes'] else ''}"
        f"{'Redux ' + format(c['redux_bytes'] / gib, '.2f') + ', ' if c['redux_bytes'] else ''}"
        f"activations about {c['activation_bytes'] / gib:.2f} with {c['batch_size']:,} at a time"
        + (f"; this machine has {c['machine_bytes'] / gib:.1f}" if c["machine_bytes"] else ""),
    }
    if "compiled" in c:
        rows["programs"] = "compiled before, from the cache" if c["compiled"] else "to be compiled on the first run"
    return "\n".join(f"{name:<9}{value}" for name, value in rows.items())
