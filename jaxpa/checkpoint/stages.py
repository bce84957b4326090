"""Networks that take turns in memory: what a stage asks for is loaded, and what the others had is let go.

    text      CLIP and T5
    sample    the transformer
    pictures  the autoencoder, on the way in and out

A checkpoint's files are mapped, so loading a network again costs little beside what it computes.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxpa.backbones.variants import recognise
from jaxpa.checkpoint.source import Adaptation
from jaxpa.config import FluxConfig, Rounding, Settings

STAGES = {"text": ("text_encoder", "text_encoder_2"), "sample": ("transformer",), "pictures": ("vae",)}


def settings_over(settings: Settings, laid: Adaptation) -> Settings:
    """What suits a checkpoint, once something is laid over it: it may be another of the sister models then."""
    variant = recognise(laid.config.transformer, settings.variant)
    return settings if variant.name == settings.variant else replace(settings, variant=variant.name, **variant.settings)


class Staged:
    """A checkpoint as `load.Parts` has it, whose networks are there while their stage is.

    A network is freed once nobody else holds it: keep none over a stage. `texts` is a place to keep what was encoded
    for a request, so that its encoders need not come back.
    """

    resident = False

    def __init__(
        self,
        config: FluxConfig,
        settings: Settings,
        weights: Rounding,
        tokenizers: dict[str, Path],
        dtype: np.dtype,
        load: Callable[[str], Any],
    ):
        """load: the name of a network's folder -> the network."""
        self.config, self.settings = config, settings
        self.weights, self.tokenizers, self.dtype = weights, tokenizers, dtype
        self.texts: dict[str, Any] = {}
        self.bare: Staged | None = None  # the networks without what is kept beside their weights,
        self.kept = 0  # which is so many numbers
        self._load, self._held = load, dict[str, Any]()

    def over(self, laid: Adaptation) -> "Staged":
        """The same networks with something else kept beside their weights."""
        bare = self.bare or self

        def load(name: str) -> Any:
            return laid.attach(name, bare._network(name))

        out = Staged(laid.config, settings_over(bare.settings, laid), bare.weights, bare.tokenizers, bare.dtype, load)
        out.bare, out.kept = bare, laid.kept
        return out

    def _network(self, name: str) -> Any:
        stage = next(names for names in STAGES.values() if name in names)
        for other in set(self._held) - set(stage):
            del self._held[other]
        if name not in self._held:
            self._held[name] = self._load(name)
        return self._held[name]

    @property
    def transformer(self) -> Any:
        return self._network("transformer")

    @property
    def vae(self) -> Any:
        return self._network("vae")

    @property
    def text_encoder(self) -> Any:
        return self._network("text_encoder")

    @property
    def text_encoder_2(self) -> Any:
        return self._network("text_encoder_2")
