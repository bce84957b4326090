"""FLUX.1's sister models: the same network but for what it reads, how each is recognised, and what suits it.

    text      the prompt alone: dev, schnell, Krea-dev, and those of fewer blocks
    kontext   a picture's tokens in the same sequence, at positions whose first axis is 1
    fill      the kept part of a picture, and the mask of the rest, as further channels of each token
    canny, depth, control
              a control picture as further channels of each token

Channels tell most of them apart. Kontext has those of dev, Canny those of Depth: a pipeline's own class, a name, or
the user must say which it is. Steps and guidance are those of the original release's own commands.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxpa.backbones.backbone import BackboneConfig

Reads = Literal["nothing", "sequence", "control", "fill"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One of the sister models.

    title: for messages. reads: what it is given besides prompt and noise. pipelines: classes in a model_index.json that
    mean it. named: what its files and repositories are called. settings: those that differ from FLUX.1-dev's. sizes:
    (width, height) at 1024 x 1024 pixels that it was trained on, if there are few.
    """

    name: str
    title: str
    reads: Reads
    pipelines: tuple[str, ...] = ()
    named: re.Pattern[str] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ()

    @property
    def reads_channels(self) -> bool:
        """Whether it draws nothing without a picture."""
        return self.reads in ("control", "fill")

    def fits(self, config: BackboneConfig) -> bool:
        """Whether a network of these channels can be this one."""
        token, more = config.velocity_channels, config.in_channels - config.velocity_channels
        return self.reads in (("nothing", "sequence") if not more else ("control",) if more == token else ("fill",))


WIDE = ((1568, 672), (1504, 688), (1456, 720), (1392, 752), (1328, 800), (1248, 832), (1184, 880), (1104, 944))
KONTEXT_SIZES = (*((h, w) for w, h in WIDE), (1024, 1024), *reversed(WIDE))

# Where several fit and nothing tells them apart, the first.
VARIANTS: dict[str, Variant] = {
    each.name: each
    for each in (
        Variant(name="text", title="FLUX.1", reads="nothing", pipelines=("FluxPipeline",)),
        Variant(
            name="kontext",
            title="FLUX.1-Kontext",
            reads="sequence",
            pipelines=("FluxKontextPipeline", "FluxKontextInpaintPipeline"),
            named=re.compile("kontext", re.IGNORECASE),
            settings={"steps": 30, "guidance": 2.5},
            sizes=KONTEXT_SIZES,
        ),
        Variant(
            name="fill",
            title="FLUX.1-Fill",
            reads="fill",
            pipelines=("FluxFillPipeline",),
            settings={"steps": 50, "guidance": 30.0},
        ),
        Variant(name="control", title="FLUX.1 with a control picture", reads="control"),
        Variant(
            name="canny",
            title="FLUX.1-Canny",
            reads="control",
            named=re.compile("canny", re.IGNORECASE),
            settings={"steps": 50, "guidance": 30.0},
        ),
        Variant(
            name="depth",
            title="FLUX.1-Depth",
            reads="control",
            named=re.compile("depth", re.IGNORECASE),
            settings={"steps": 50, "guidance": 10.0},
        ),
    )
}


def recognise(config: BackboneConfig, said: str | None = None, pipeline: str | None = None, name: str = "") -> Variant:
    """Which of them a checkpoint is.

    said: by the user, or by the folder's own settings; pipeline: the `_class_name` of its model_index.json; name: of
    its file, folder or repository. One that does not fit the channels counts as unsaid.
    """
    fitting = [each for each in VARIANTS.values() if each.fits(config)]
    by_user = (each for each in fitting if each.name == said)
    by_class = (each for each in fitting if pipeline in each.pipelines)
    by_name = (each for each in fitting if each.named is not None and each.named.search(name))
    return next(by_user, None) or next(by_class, None) or next(by_name, fitting[0])


def misfit(config: BackboneConfig, said: str | None) -> str | None:
    """What is wrong with a variant that is said; None: nothing."""
    if said is None or VARIANTS[said].fits(config):
        return None
    fitting = " or ".join(repr(each.name) for each in VARIANTS.values() if each.fits(config))
    return (
        f"variant is {said!r}, but the transformer reads {config.in_channels} channels for {config.velocity_channels} "
        f"of a token: with these it can be {fitting}"
    )
