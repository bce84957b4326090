"""Which pictures are sampled together, and how many at once: decided from the whole file.

A batch's size is a part of its program. It must not depend on what is left to do, on which machine does it, or on the
order of the lines: then every picture comes from the same program, and a rerun ends in the same bytes.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import NamedTuple

import jax

from jaxpa.batching import Size, gate_of
from jaxpa.box import Box
from jaxpa.devices.memory import Held, Load, batch_that_fits
from jaxpa.devices.plan import run_of
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec
from jaxpa.routing import block_taus

MOST = 8  # images at once, if nobody says: more gain nothing, on two cores of a CPU as on one device that FLUX fills


class Share(NamedTuple):
    """What a line brings to a group.

    kind: lines of equal ones are sampled together (None: the line is run by itself); gates: what each tau decides
    (`batching.gate_of`): pictures of equal ones share batches; cast: lines of equal ones have the same references;
    images and references: how many; request, canvas (height, width): one of its kind, for the plan.
    """

    kind: Hashable
    gates: tuple[Hashable, ...]
    cast: Hashable
    images: int
    references: int
    request: Request
    canvas: tuple[int, int]
    spec: Spec
    held: Held


def kind_of(request: Request, spec: Spec, canvas: tuple[int, int], references: int) -> Hashable:
    """What decides the program of a request's pictures, as far as it is known before anything loads; None: its
    pictures share no batch with others'."""
    said = request.sampling
    run = run_of(request, spec, canvas)
    own = (
        run.grid,
        run.times.tobytes(),
        said.solver,
        said.cache,
        run.guided,
        request.embedding is not None,
        request.image_prompt is not None,
    )
    if is_alone(request, spec):
        return None
    if not request.references:
        return own
    preset = request.switches(spec)
    switches = preset.level, preset.concat, preset.parts, preset.blocks, preset.soft, preset.reference_time
    return (*own, references, *switches, request.method.surroundings is not None)


def is_alone(request: Request, spec: Spec) -> bool:
    """Whether a request's pictures share no batch with others'."""
    if request.following is not None or request.riding(spec) < request.references:  # the network reads a picture
        return True
    # "target": references see where they are put in one of the images.
    return request.references > 0 and request.switches(spec).concat == "target"


def gates_of(request: Request, spec: Spec, canvas: tuple[int, int]) -> tuple[Hashable, ...]:
    """Of every tau of a request what it decides; (None,) where none is asked for."""
    if not request.riding(spec):
        return (None,)
    times, own = request.times(spec, spec.grid(*canvas)), request.switches(spec).tau_blocks
    return tuple(gate_of(block_taus(tau, own, times, spec.blocks), times) for tau in request.taus(spec))


def cast_of(request: Request, spec: Spec) -> Hashable:
    """What decides the references' rows: requests of equal ones share them."""
    preset = request.switches(spec) if request.references else None
    said = replace(request, prompt=None, embedding=None, places=(), sampling=type(request.sampling)())
    if request.subjects:  # a centre says where tokens go, and not what they are; a box scales the picture
        last = replace(request.subjects[-1], at=request.places[0]) if request.places else request.subjects[-1]
        subjects = (*request.subjects[:-1], last)
        said = replace(
            said, subjects=tuple(each if isinstance(each.at, Box) else replace(each, at=None) for each in subjects)
        )
    outside = request.guidance(spec)
    guidance: tuple[float, ...] = (outside,)
    if preset is not None:
        inside = outside if preset.guidance_inside is None else preset.guidance_inside
        # Beside the images after tau, the references are read with the images' own guidance.
        guidance = (inside,) if preset.concat in (None, "joined") else (inside, outside)
        said = replace(said, method=type(request.method)(preset=replace(preset, shuffle=0.0, outline=0, margin=0)))
    return repr(said), guidance


def sizes(shares: Iterable[Share], asked: int | None) -> dict[Hashable, dict[Hashable, Size]]:
    """The batches of each kind by their gates: `asked` images, or as many as fit and `MOST` at most; no more than the
    file has of such."""
    kinds: dict[Hashable, dict[Hashable, list[Share]]] = {}
    for share in shares:
        for gate in share.gates if share.kind is not None else ():
            one = share._replace(gates=(gate,), images=share.images // len(share.gates))
            kinds.setdefault(share.kind, {}).setdefault(gate, []).append(one)
    return {kind: {gate: _size(group, asked) for gate, group in gates.items()} for kind, gates in kinds.items()}


def _size(group: list[Share], asked: int | None) -> Size:
    """The batch of pictures that can share one."""
    images = sum(share.images for share in group)
    each = max(share.references for share in group)
    size = min(_even(images, _most(group, images, each)) if asked is None else asked, images)
    casts = _casts(group, size)
    # Few sizes: another file should find its programs compiled.
    return Size(size, each * min(size, 2 ** math.ceil(math.log2(casts)) if casts else 0))


def _most(group: list[Share], images: int, each: int) -> int:
    """How many images fit, if nobody says; each: the references that one may have."""
    run, platform = run_of(group[0].request, group[0].spec, group[0].canvas), jax.devices()[0].platform

    def load_of(count: int) -> Load:  # every image with references of its own
        return replace(run, references=each * count).load(count, group[0].held, platform)

    return max(1, batch_that_fits(load_of, min(images, MOST), platform))


def _even(images: int, most: int) -> int:
    """The smallest batch that needs no more of them than the largest: 9 images are 5 and 4, and not 8 and 1."""
    return math.ceil(images / math.ceil(images / most))


def _casts(group: list[Share], size: int) -> int:
    """How many different casts a batch of the file has at most, its lines being ordered by cast."""
    counts = Counter[Hashable]()
    for share in group:
        counts[share.cast] += share.images if share.references else 0
    row = [cast for cast, count in counts.items() for _ in range(count)]
    return max((len(set(row[start : start + size])) for start in range(0, len(row), size)), default=0)
