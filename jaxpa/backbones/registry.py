"""All backbones. A new one is a file of its own and a line here."""

from typing import Any

from jaxpa.backbones.backbone import Backbone
from jaxpa.backbones.flux import FLUX

BACKBONES: dict[str, Backbone] = {"flux": FLUX}


def backbone_of(config: Any) -> Backbone:
    """The backbone that a configuration belongs to. Raises TypeError for one of another kind."""
    for backbone in BACKBONES.values():
        if type(config) is backbone.config:
            return backbone
    raise TypeError(f"no backbone has a {type(config).__name__}: {', '.join(BACKBONES)} are registered")
