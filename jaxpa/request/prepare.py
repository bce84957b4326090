"""From a request to arrays: its pictures, masks and places on a checkpoint's canvas, read once, without networks."""

from typing import Any

from jaxpa.media import images, masks
from jaxpa.media.edits import MaskedPicture, pad_picture, prepare_edit
from jaxpa.media.subjects import References, Subject, read_references
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec


def prepare(request: Request, spec: Spec) -> References | MaskedPicture | None:
    """A request's pictures, masks and places on a checkpoint's canvas, without its networks; None: it has none.

    Raises JaxpaError for what is wrong with them, and for a subject whose mask is still to be found by its word.
    """
    sampling, edit = request.sampling, request.editing
    if edit is not None:
        picture = images.read_image(edit.image)
        if edit.pad is not None:
            picture, change = pad_picture(picture, edit.pad)
        else:
            assert edit.mask is not None
            change = images.read_mask(edit.mask, picture.size)
            if edit.grow:  # pixels of the picture, on a mask of any resolution
                change = masks.grow(change, edit.grow * change.shape[1] / picture.width)
        return prepare_edit(picture, change, spec.canvas(picture.size, sampling.height, sampling.width), edit.caption)
    if request.verb != "personalize":
        return None
    h, w = spec.grid(sampling.height, sampling.width)
    coverage = request.switches(spec).coverage
    size = h * spec.cell, w * spec.cell
    return read_references(request.subjects, request.scene, *size, (h, w), request.places or None, coverage)


PREPARED = Subject("a reference that has been prepared")


def standing_for(references: References) -> dict[str, Any]:
    """What a request says of references that are arrays already: how many there are, and in how many places."""
    places, count = len(references.where.source), len(references.masks) - references.scene
    return {
        "subjects": (PREPARED,) * count,
        "scene": PREPARED if references.scene else None,
        "places": (None,) * places if places > 1 else (),
    }
