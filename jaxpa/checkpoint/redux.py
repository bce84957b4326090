"""FLUX.1-Redux: a folder or a hub id with SigLIP (`image_encoder`) and two linear layers (`image_embedder`)."""

from pathlib import Path
from typing import NamedTuple

from jax.typing import DTypeLike

from jaxpa.checkpoint.load import load_component
from jaxpa.checkpoint.source import locate, resolve
from jaxpa.config import SiglipVisionConfig
from jaxpa.encoders.vision import ReduxEmbedder, VisionEncoder
from jaxpa.errors import CheckpointError

FOLDERS = ("image_encoder", "image_embedder")


class Redux(NamedTuple):
    """What makes text tokens of a picture."""

    encoder: VisionEncoder
    embedder: ReduxEmbedder


def count_redux(source: str | Path, download: bool = True) -> int:
    """How many numbers both networks have, by their headers. Raises CheckpointError."""
    folder = _folder(source, download)
    return sum(part.parameters for name in FOLDERS for part in resolve(folder / name).parts.values())


def load_redux(source: str | Path, text_width: int, dtype: DTypeLike | None = None) -> Redux:
    """Read both networks; text_width: Dt of the transformer. Raises CheckpointError with everything that is wrong."""
    folder = _folder(source)
    made = Redux(*(load_component(folder / name, dtype) for name in FOLDERS))
    if not isinstance(made.encoder, VisionEncoder) or type(made.encoder.config) is not SiglipVisionConfig:
        raise CheckpointError(f"{folder / FOLDERS[0]}: FLUX.1-Redux reads SigLIP's vision transformer, not this one")
    found = made.embedder.config.redux_dim, made.embedder.config.txt_in_features
    if found != (wanted := (made.encoder.config.hidden_size, text_width)):
        raise CheckpointError(
            f"{folder / FOLDERS[1]}: it maps {found[0]} channels to {found[1]}; with this encoder and this transformer "
            f"it should map {wanted[0]} to {wanted[1]}"
        )
    return made


def _folder(source: str | Path, download: bool = True) -> Path:
    folder = locate(source, FOLDERS, download)
    if missing := [name for name in FOLDERS if not (folder / name / "config.json").is_file()]:
        raise CheckpointError(
            f"{source} is no FLUX.1-Redux in diffusers' layout: it lacks {' and '.join(missing)}; name its folder, or "
            "black-forest-labs/FLUX.1-Redux-dev"
        )
    return folder
