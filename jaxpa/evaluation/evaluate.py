"""How well pictures keep a subject and follow a prompt: subjects x prompts x settings x seeds.

    scored = evaluate(pipe, read_cases("benchmark"), {"early": {"tau": 0.8}, "paper": {"preset": "paper"}}, judge=judge)
    print(scores.markdown(scores.summarise(scored)))

Metrics of arrays come first, and use no model. A `Judge`, any callable that looks at pictures, answers what only a
trained network can tell (does the picture show a car? is it the same car?). Each table has the rows that one needs to
read it: the floor (a plain sample of the prompt), the ceiling (the reference after a round trip through the
autoencoder), and another instance of the same caption, if a case has one.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from jaxpa.errors import JaxpaError
from jaxpa.evaluation.metrics import Metric
from jaxpa.evaluation.scores import Score
from jaxpa.media import images, masks
from jaxpa.media.images import Picture
from jaxpa.media.subjects import References, Subject, has_mask, load_subject, read_subject
from jaxpa.pipeline import Pipeline, places_in
from jaxpa.request.request import Request
from jaxpa.request.taus import show_tau

# Metrics of arrays -------------------------------------------------------------------------------------------


def correlation(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """Pearson correlation of two pictures (H, W, 3) inside a mask (H, W), all channels together; 0 for a flat one."""
    x, y = (picture[mask].astype(np.float64).ravel() for picture in (a, b))
    if not x.size:
        return math.nan
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 1e-9 else 0.0


class Target(NamedTuple):
    """What a personalised picture should hold, in its pixels.

    expected (H, W, 3), the reference's pixels at their new places; subject (H, W), where its subject is; cells (H, W),
    the tokens that were replaced; reference (H, W, 3), what a judge compares with, and its own mask (H, W) (None:
    `expected` and `subject`).
    """

    expected: np.ndarray
    subject: np.ndarray
    cells: np.ndarray
    reference: np.ndarray | None = None
    mask: np.ndarray | None = None


def moved(references: References, subject: Subject) -> Target:
    """The target for references of one subject, at its first placement: pixels move with their token."""
    h, w = references.grid
    picture = references.images[-1]
    height, width = picture.shape[:2]
    cell = height // h
    subject = load_subject(subject)
    assert subject.mask is not None
    # The mask is treated as the picture is: cut, mirrored and scaled.
    drawn = np.uint8(255 * masks.resize_mask(subject.mask, subject.image.height, subject.image.width))
    likewise = replace(subject, image=Image.fromarray(drawn).convert("RGB"))
    alike = read_subject(likewise, height, width, references.grid, 1e-3).picture
    source, landed = (np.asarray(each)[0, -1] for each in references.where)

    def move(values: np.ndarray) -> np.ndarray:  # (H, W, C)
        blocks = values.reshape(h, cell, w, cell, -1).swapaxes(1, 2).reshape(h * w, cell, cell, -1)  # (N, c, c, C)
        blocks = blocks[source] * landed[:, None, None, None]
        return blocks.reshape(h, w, cell, cell, -1).swapaxes(1, 2).reshape(values.shape)

    cells = np.asarray(references.placement.target)[0, -1].reshape(h, w)
    cells = cells.repeat(cell, 0).repeat(cell, 1)
    own = alike[..., :1] > 0
    return Target(move(picture), move(own)[..., 0] > 0, cells, picture, own[..., 0])


def halo(picture: np.ndarray, target: Target) -> float:
    """The share of replaced pixels beside the subject that look more like the reference's background than the new one.

    The new background is the picture's own at the nearest pixel that was not replaced. A pixel at the subject's rim
    counts for neither. NaN if no pixel counts.
    """
    subject: Any = ndimage.binary_dilation(target.subject, iterations=1)
    beside = target.cells & ~subject
    if not beside.any() or target.cells.all():
        return math.nan
    nearest: Any = ndimage.distance_transform_edt(target.cells, return_distances=False, return_indices=True)
    soft = ndimage.uniform_filter(picture, 3, axes=(0, 1))  # one pixel of a texture is not background
    new = soft[nearest[0], nearest[1]]
    far = [np.linalg.norm(picture - other, axis=-1)[beside] for other in (target.expected, new)]
    return float(np.mean(far[0] < far[1]))


def seam(picture: np.ndarray, new: np.ndarray, reach: int = 1, far: int = 8) -> float:
    """How much a picture (H, W, 3) changes across the border of its new part (H, W), against beside it: 1 is no seam.

    The difference of pixels `reach` to either side of the border, and of pairs of the same direction and distance that
    lie up to `far` pixels off it without meeting it. NaN if there is no border, or nothing beside it.
    """
    across, beside = [], []
    for x, inside in ((picture, new), (picture.swapaxes(0, 1), new.T)):
        x, inside = x.astype(np.float64), inside.astype(bool)
        change = np.abs(x[:, 2 * reach - 1 :] - x[:, : x.shape[1] - 2 * reach + 1]).mean(-1)  # (H, W - 2 reach + 1)
        borders = inside[:, 1:] != inside[:, :-1]  # (H, W - 1)
        met = np.stack([borders[:, k : k + change.shape[1]] for k in range(2 * reach - 1)]).sum(0)
        middle = borders[:, reach - 1 : reach - 1 + change.shape[1]]
        near: Any = ndimage.binary_dilation(middle, np.ones((1, 2 * far + 1)))
        across.append(change[middle & (met == 1)])
        beside.append(change[near & (met == 0)])
    at, off = np.concatenate(across), np.concatenate(beside)
    return float(at.mean() / max(off.mean(), 1e-9)) if at.size and off.size else math.nan


def distances(pictures: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Diversity over seeds: each picture's mean distance from the others, (S, H, W, 3) -> (S,).

    The root mean square of the difference in `outside` (H, W), as a share of the range from black to white. NaN for one
    picture.
    """
    count = len(pictures)
    if count < 2 or not outside.any():
        return np.full(count, math.nan)
    x = pictures[:, outside].reshape(count, -1) / 2  # (S, pixels)
    apart = np.sqrt(np.stack([np.mean((x - one) ** 2, axis=1) for one in x]))  # (S, S)
    return apart.sum(1) / (count - 1)


# Judging -----------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """A judge's verdict on B pictures.

    named: for each head (family, colour, ...) B names; names: all that each head may say, words that prompts use;
    embedding (B, E), of length 1, near for pictures of one subject.
    """

    named: Mapping[str, Sequence[str]]
    names: Mapping[str, Sequence[str]]
    embedding: np.ndarray


Judge = Callable[[np.ndarray], Verdict]
"""Looks at pictures (B, H, W, 3) in [-1, 1]."""


def follows(verdict: Verdict, prompt: str) -> dict[str, np.ndarray]:
    """For each head, whether the picture shows what the prompt says: (B,) of 0 and 1.

    Heads that the prompt does not mention are left out.
    """
    words = set(re.findall(r"\w+", prompt.lower()))
    asked = {head: words & set(names) for head, names in verdict.names.items()}
    return {
        head: np.array([float(name in said) for name in verdict.named[head]]) for head, said in asked.items() if said
    }


# Cases -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A subject and the prompts to try it with.

    another: a different instance of the same caption at the same place, whose likeness a method must exceed.
    """

    name: str
    subject: Subject
    prompts: tuple[str, ...]
    another: Picture | None = None


def read_cases(folder: str | Path) -> list[Case]:
    """A benchmark on disk: a folder for each subject, and the prompts.

        prompts.txt             a prompt a line; {} stands for the subject's name
        SUBJECT/0.png           pictures, each a case: any number, any format
        SUBJECT/0-mask.png      its mask; none: the picture's transparency, or what attention finds for its name
        SUBJECT/0.txt           its caption, which an inversion follows; none: no caption
        SUBJECT/0-another.png   another instance of the caption
        SUBJECT/name.txt        what {} stands for; none: the folder's name
        SUBJECT/prompts.txt     prompts of its own, in place of the common ones

    Raises JaxpaError if there is no subject, or a subject without prompts or with a mask that cannot be used.
    """
    root = Path(folder)
    if not root.is_dir():
        raise JaxpaError(f"there is no folder {root}: give one with a folder for each subject")
    cases = [case for each in sorted(root.iterdir()) if each.is_dir() for case in _subject_cases(each, root)]
    if not cases:
        raise JaxpaError(f"{root} holds no subject: it needs a folder with pictures for each")
    return cases


def _subject_cases(folder: Path, root: Path) -> Iterator[Case]:
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in images.FORMATS]
    pictures = [file for file in files if not file.stem.endswith(("-mask", "-another"))]
    name = _text(folder / "name.txt") or folder.name.replace("_", " ")
    lines = _text(folder / "prompts.txt") or _text(root / "prompts.txt")
    prompts = tuple(line.strip().replace("{}", name) for line in lines.splitlines() if line.strip())
    if pictures and not prompts:
        raise JaxpaError(f"{folder} has no prompts: write {root / 'prompts.txt'}, a prompt a line")
    for file in pictures:
        mask, another = (
            next((other for other in files if other.stem == f"{file.stem}-{what}"), None)
            for what in ("mask", "another")
        )
        subject = Subject(file, mask, caption=_text(file.with_suffix(".txt")), word=name)
        has_mask(subject)  # reads it: a fault is reported before hours of work
        label = folder.name if len(pictures) == 1 else f"{folder.name}/{file.stem}"
        yield Case(label, subject, prompts, another)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip() if file.exists() else ""


# Running -----------------------------------------------------------------------------------------------------


FLOOR, CEILING, ANOTHER = "plain sample", "autoencoder round trip", "another instance"


def evaluate(
    pipe: Pipeline,
    cases: Sequence[Case],
    settings: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int] = (0, 1),
    judge: Judge | None = None,
    on_pictures: Callable[[str, Case, str, list[Image.Image]], None] | None = None,
    metrics: Sequence[Metric] = (),
    **common: Any,
) -> list[Score]:
    """Personalise every subject with every prompt, setting and seed, and score the pictures.

    settings: a label and the keywords of `Pipeline.personalize`; a list of tau is one setting for each ("label, tau
    0.5"), through one inversion and program. The seeds of a prompt are one batch. on_pictures(label, case, prompt,
    pictures) sees what was made. metrics: networks that look too, such as those of `evaluation.metrics`. common: steps,
    guidance, height, width or negative_prompt of all pictures. Floor, ceiling and the other instance are scored beside.
    Raises JaxpaError.
    """
    scores: list[Score] = []
    for case in cases:
        case = replace(case, subject=pipe.with_mask(case.subject))
        scores += _baselines(pipe, case, judge, metrics, common)
        for prompt in case.prompts:
            plain = pipe.generate(prompt, seed=tuple(seeds), **common)
            target = moved(pipe.references([case.subject], **_size(common)), case.subject)
            batches = [(FLOOR, target, plain), *_personalised(pipe, case, prompt, settings, seeds, common)]
            for label, target, pictures in batches:
                if on_pictures is not None:
                    on_pictures(label, case, prompt, pictures)
                values = measure(_arrays(pictures), target, prompt, judge, metrics)
                scores += [Score(label, case.name, prompt, *each) for each in zip(seeds, values, strict=True)]
    return scores


def _personalised(
    pipe: Pipeline,
    case: Case,
    prompt: str,
    settings: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int],
    common: Mapping[str, Any],
) -> Iterator[tuple[str, Target, list[Image.Image]]]:
    """(label, target, a picture for each seed) of every setting."""
    for label, own in settings.items():
        said = places_in({**common, **own})
        request = Request.of(prompt, subjects=[case.subject], seed=tuple(seeds), **said)
        if len(request.places) > 1:
            raise JaxpaError(f"{label} has {len(request.places)} places, and a score is of one: make a setting of each")
        references = pipe.prepare(request)
        assert isinstance(references, References)
        target, made = moved(references, case.subject), pipe.make(request, references)
        taus = request.taus(pipe.spec)
        for k, tau in enumerate(taus):
            name = f"{label}, tau {show_tau(tau)}" if len(taus) > 1 else label
            yield name, target, made[k * len(seeds) : (k + 1) * len(seeds)]


def measure(
    pictures: np.ndarray,
    target: Target,
    prompt: str | None,
    judge: Judge | None = None,
    metrics: Sequence[Metric] = (),
) -> list[dict[str, float]]:
    """The metrics of pictures (S, H, W, 3) that differ in their seed.

    identity: correlation inside the moved mask; likeness: similarity in the judge's embedding to the reference;
    halo, diversity; and what the prompt says, head by head, with `prompt` their mean; and what `metrics` say
    beside the user's own picture. prompt None: a reference.
    """
    own = [{"identity": correlation(one, target.expected, target.subject)} for one in pictures]
    if prompt is not None:
        apart = distances(pictures, ~target.cells)
        for values, picture, far in zip(own, pictures, apart, strict=True):
            values |= {"halo": halo(picture, target), "diversity": float(far)}
    reference = target.expected if target.reference is None else target.reference
    mask = target.subject if target.mask is None else target.mask
    if judge is not None:
        verdict = judge(np.concatenate([reference[None], pictures]))
        likeness = verdict.embedding[1:] @ verdict.embedding[0]
        heads = {} if prompt is None else {head: each[1:] for head, each in follows(verdict, prompt).items()}
        for k, values in enumerate(own):
            values["likeness"] = float(likeness[k])
            values |= {head: float(each[k]) for head, each in heads.items()}
            if heads:
                values["prompt"] = float(np.mean([each[k] for each in heads.values()]))
    for metric in metrics:
        for name, found in metric(pictures, reference, mask, prompt).items():
            for values, value in zip(own, found, strict=True):
                values[name] = float(value)
    return own


def _size(keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {key: keywords[key] for key in ("height", "width") if key in keywords}


def _baselines(
    pipe: Pipeline, case: Case, judge: Judge | None, metrics: Sequence[Metric], common: Mapping[str, Any]
) -> list[Score]:
    """What the autoencoder leaves of the reference, and another instance of its caption, both where it was."""
    subject = Subject(case.subject.image, case.subject.mask)
    references = pipe.references([subject], **_size(common))
    target, array = moved(references, subject), references.images[-1]
    height, width = array.shape[:2]
    found = [(CEILING, pipe.decode(pipe.encode_image(array[None]), height, width)[0])]
    if case.another is not None:
        found.append((ANOTHER, images.read_image(case.another).resize((width, height), Image.Resampling.LANCZOS)))
    values = [measure(_arrays([picture]), target, None, judge, metrics)[0] for _, picture in found]
    return [Score(label, case.name, "", 0, value) for (label, _), value in zip(found, values, strict=True)]


def _arrays(pictures: Sequence[Image.Image]) -> np.ndarray:
    """Pictures -> (S, H, W, 3) in [-1, 1]."""
    return np.stack([np.asarray(picture, np.float32) / 127.5 - 1 for picture in pictures])
