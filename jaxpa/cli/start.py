"""`--from PICTURE`: the words of an earlier picture's settings, with those that are given on top."""

import os
from collections.abc import Sequence
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import Any

from jaxpa.cli.console import LOG
from jaxpa.cli.flags import group_subjects
from jaxpa.cli.spell import flag as spelled
from jaxpa.cli.spell import words_of
from jaxpa.cli.words import flags_of, said
from jaxpa.errors import JaxpaError
from jaxpa.request.groups import Checkpoint, Method, Sampling
from jaxpa.request.origin import found, read_origin
from jaxpa.request.provenance import Input, MaskProvenance

FROM = "from"
TEXTS = ("prompt", "prompts", "embedding")  # of which a command takes one
# What every command means by the same name; an --image, for one, is kept by one and changed by another.
COMMON = {each.name.replace("_", "-") for group in (Checkpoint, Sampling, Method) for each in fields(group)}
COMMON |= {"prompt", "embedding", "image-prompt", "control", "edges"}


def with_settings(kind: type[Any], name: str, words: Sequence[str], folder: Path) -> list[str]:
    """The words of a command, behind those of the picture that a --from among them names; subjects are grouped.

    folder: from which paths count. Raises JaxpaError for a picture that does not say how it was made.
    """
    given = list(said(words))
    pictures = [values for flag, values in given if flag == FROM]
    if not pictures or FROM not in flags_of(kind):
        return list(words)
    if len(pictures) > 1 or len(pictures[0]) != 1:
        raise JaxpaError("--from takes one picture")
    own = {flag.removeprefix("no-").replace("_", "-") for flag, _ in given}
    model = next((values[0] for flag, values in given if flag == "model" and values), None)
    verb, settings = settings_of(folder / pictures[0][0], (folder, (folder / pictures[0][0]).parent), model)
    taken = own | (set(TEXTS) if own & set(TEXTS) else set())
    known = flags_of(kind).keys() if verb == name else flags_of(kind).keys() & COMMON
    before = [each for each in said(group_subjects(verb, settings)) if each[0] in known and each[0] not in taken]
    flags = [*before, *given]
    alone = takewhile(lambda word: not word.startswith("--"), words)  # is refused where words are parsed
    return [*alone, *(word for each in flags for word in spelled(*each))]


def settings_of(picture: Path, folders: Sequence[Path], model: str | None) -> tuple[str, list[str]]:
    """The command that made a picture alone, and its flags without --out; model: the one that is taken instead."""
    record, _ = read_origin(picture)
    if isinstance(record, MaskProvenance):
        raise JaxpaError(f"{picture} is a mask: give --from a picture that was made of a prompt")

    def changed(wanted: Input, error: JaxpaError) -> str:
        name = os.path.basename(wanted.name)
        if any((folder / name).is_file() for folder in folders):
            LOG.warning("%s", error)
        return name  # one that is missing is missed where it is read, unless a flag names another

    here = found(record, folders, model, changed)
    checkpoint = here.checkpoint.as_checkpoint(here.checkpoint.dtype)
    verb, *words = words_of(here.single(), checkpoint, "")
    return verb, words[:-2]
