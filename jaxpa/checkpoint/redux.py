"""FLUX.1-Redux: a folder or a hub id with SigLIP (`image_encoder`) and two linear layers (`image_embedder`)."""

from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from jax.typing import DTypeLike

from jaxpa.checkpoint.fingerprint import fingerprint
from jaxpa.checkpoint.load import load_component
from jaxpa.checkpoint.parts import Part
from jaxpa.checkpoint.source import Source, locate, resolve
from jaxpa.config import SiglipVisionConfig
from jaxpa.encoders.vision import ReduxEmbedder, VisionEncoder
from jaxpa.errors import CheckpointError

FOLDERS = ("image_encoder", "image_embedder")


class Redux(NamedTuple):
    """What makes text tokens of a picture."""

    encoder: VisionEncoder
    embedder: ReduxEmbedder


class FoundRedux(NamedTuple):
    """Both networks, before anything is loaded."""

    encoder: Source
    embedder: Source

    @property
    def parameters(self) -> int:
        """How many numbers they have, by their headers."""
        return sum(part.parameters for part in self._parts.values())

    @property
    def sha256(self) -> str:
        """Their `fingerprint`."""
        configs = [asdict(part.config) for part in self._parts.values() if part.config is not None]
        return fingerprint(configs, self._parts, {})

    @property
    def _parts(self) -> dict[str, Part]:
        return self.encoder.parts | self.embedder.parts


def find_redux(source: str | Path, download: bool = True) -> FoundRedux:
    """Find both networks and read their headers. Raises CheckpointError where there are none."""
    folder = locate(source, FOLDERS, download)
    if missing := [name for name in FOLDERS if not (folder / name / "config.json").is_file()]:
        raise CheckpointError(
            f"{source} is no FLUX.1-Redux in diffusers' layout: it lacks {' and '.join(missing)}; name its folder, or "
            "black-forest-labs/FLUX.1-Redux-dev"
        )
    return FoundRedux(*(resolve(folder / name) for name in FOLDERS))


def load_redux(found: FoundRedux, text_width: int, dtype: DTypeLike | None = None) -> Redux:
    """Read both networks; text_width: Dt of the transformer. Raises CheckpointError with everything that is wrong."""
    made = Redux(*(load_component(each, dtype) for each in found))
    if not isinstance(made.encoder, VisionEncoder) or type(made.encoder.config) is not SiglipVisionConfig:
        raise CheckpointError(f"{found.encoder.path}: FLUX.1-Redux reads SigLIP's vision transformer, not this one")
    if not isinstance(made.embedder, ReduxEmbedder):
        raise CheckpointError(f"{found.embedder.path}: this is another network than FLUX.1-Redux's linear layers")
    maps = made.embedder.config.redux_dim, made.embedder.config.txt_in_features
    if maps != (wanted := (made.encoder.config.hidden_size, text_width)):
        raise CheckpointError(
            f"{found.embedder.path}: it maps {maps[0]} channels to {maps[1]}; with this encoder and this transformer "
            f"it should map {wanted[0]} to {wanted[1]}"
        )
    return made
