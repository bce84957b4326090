"""From a request to arrays: its pictures, masks and places on a checkpoint's canvas, read once, without networks."""

from dataclasses import replace
from typing import Any

import numpy as np

from jaxpa.media import images, masks
from jaxpa.media.edges import canny
from jaxpa.media.edits import Followed, Frame, MaskedPicture, StartPicture, pad_picture, prepare_edit
from jaxpa.media.subjects import References, Subject, read_references
from jaxpa.request.groups import Following
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec

NotReferences = MaskedPicture | StartPicture | Followed
Pictures = References | NotReferences


def prepare(request: Request, spec: Spec) -> Pictures | None:
    """A request's pictures, masks and places on a checkpoint's canvas, without its networks; None: it has none.

    Raises JaxpaError for what is wrong with them, and for a subject whose mask is still to be found by its word.
    """
    sampling, edit = request.sampling, request.editing
    if edit is not None:
        own = picture = images.read_image(edit.image)
        if edit.pad is not None:
            picture, change = pad_picture(picture, edit.pad)
        else:
            assert edit.mask is not None
            change = images.read_mask(edit.mask, picture.size)
            if edit.grow:  # pixels of the picture, on a mask of any resolution
                change = masks.grow(change, edit.grow * change.shape[1] / picture.width)
        canvas, scale = spec.edit_canvas(picture.size, own.size, sampling.height, sampling.width)
        made = prepare_edit(picture, change, canvas, edit.caption, scale)
        return replace(made, control=_control(request.following, canvas, made.frame))
    if request.starting is not None:
        picture = images.read_image(request.starting.image)
        canvas = spec.canvas(picture.size, sampling.height, sampling.width)
        array = images.to_array(picture, *canvas, masks.crop_box(picture.size, *canvas))
        return StartPicture(array, _control(request.following, canvas))
    if request.following is not None and request.verb in ("generate", "edit"):
        return _followed(request.following, spec, (sampling.height, sampling.width))
    if request.verb != "personalize":
        return None
    h, w = spec.grid(sampling.height, sampling.width)
    coverage = request.switches(spec).coverage
    size = h * spec.cell, w * spec.cell
    read = read_references(request.subjects, request.scene, *size, (h, w), request.places or None, coverage)
    return replace(read, control=_control(request.following, size))


def _control(following: Following | None, canvas: tuple[int, int], frame: Frame | None = None) -> np.ndarray | None:
    """The control picture, if there is one, cut to a canvas (height, width), or laid over the picture of a frame."""
    if following is None or following.control is None:
        return None
    picture = images.read_image(following.control)
    box = masks.crop_box(picture.size, *canvas)
    if frame is not None:
        height, width = frame.change.shape
        box = frame.box.scaled(picture.width / width, picture.height / height)
    array = images.to_array(picture, *canvas, box)
    return canny(array) if following.edges else array


def _followed(following: Following, spec: Spec, asked: tuple[int | None, int | None]) -> Followed:
    """A picture as the network reads it; asked: (height, width) of the canvas, as far as they are said."""
    if following.control is not None:
        canvas = spec.canvas(images.read_image(following.control).size, *asked)
        control = _control(following, canvas)
        assert control is not None
        return Followed(control, canvas)
    assert following.picture is not None
    picture = images.read_image(following.picture)
    size = spec.read_size(picture.size)  # the whole of it, stretched a little, as in its training
    return Followed(images.to_array(picture, *size), size if asked == (None, None) else spec.canvas(size, *asked))


PREPARED = Subject("a reference that has been prepared")


def standing_for(references: References) -> dict[str, Any]:
    """What a request says of references that are arrays already: how many there are, and in how many places."""
    places, count = len(references.where.source), len(references.masks) - references.scene
    return {
        "subjects": (PREPARED,) * count,
        "scene": PREPARED if references.scene else None,
        "places": (None,) * places if places > 1 else (),
    }
