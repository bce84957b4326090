"""One network as one object: all that the package knows of it besides the forward itself.

Checkpoints, plans, meshes and platforms work on these tables; none of them names a network.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from jaxpa.backbones.shapes import Shape
from jaxpa.backbones.tables import Component, Row, Work


class BackboneConfig(Protocol):
    """What requests, plans and checkpoints ask of a backbone's configuration, a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def in_channels(self) -> int: ...

    @property
    def velocity_channels(self) -> int:
        """C: channels of a token that is sampled."""
        ...

    @property
    def out_channels(self) -> int | None:
        """The same where the network takes more channels in; else None."""
        ...

    @property
    def joint_attention_dim(self) -> int: ...  # Dt

    @property
    def pooled_projection_dim(self) -> int: ...  # Dv

    @property
    def guidance_embeds(self) -> bool: ...

    @property
    def num_attention_heads(self) -> int: ...

    @property
    def attention_head_dim(self) -> int: ...

    @property
    def width(self) -> int:
        """D."""
        ...

    @property
    def blocks(self) -> int:
        """All blocks, as a routing's weight and an observer count them."""
        ...


@dataclass(frozen=True, kw_only=True)
class Backbone(Component):
    """A network that gives the velocity, in the folder `transformer` of a checkpoint.

    A module of it has `.config` and `.dtype`, and its blocks in stacks: one parameter with a leading axis of blocks.

    name: of the family, for messages; pipelines: how the `_class_name` of its pipelines begins. Modules are imported
    when they are asked for, so that what a checkpoint's headers tell needs no JAX.
    """

    name: str
    pipelines: str
    rows: Mapping[str, Row]  # type: ignore[assignment]  # a backbone has a table
    # Single files of the original release: names that only this network has there, group 1 being what may stand in
    # front; (shapes by original name, a config.json or None) -> its configuration, or a ValueError that says why not.
    signature: re.Pattern[str]
    infer: Callable[[dict[str, Shape], dict[str, Any] | None], Any]
    # (config, N, M, K) -> the work of one forward of one sample.
    work: Callable[[Any, int, int, int], Work]
    # Parameter path -> the mesh axes ("data", "model", None) of its *last* axes. The first match counts.
    rules: tuple[tuple[str, tuple[str | None, ...]], ...]
    # Attributes of the module that hold stacked blocks; their kernels that `Linear.to_heads` reads, and `from_heads`.
    stacks: tuple[str, ...]
    to_heads: re.Pattern[str]
    from_heads: re.Pattern[str]
    # (configuration, those of the other components by name) -> what does not fit, in a line each.
    misfits: Callable[[Any, Mapping[str, Any]], list[str]]
    # (TextEmbedding, guidance (B,) or None, positions (N, 3), opening=None) -> `sampling.Conditions`, to be bound to a
    # module. opening: flow times (B,), and the TextEmbedding that each row reads in place of its own above its time.
    conditions: Callable[..., Any]
    # The layer that reads the image tokens, to which an adapter may add channels (a control LoRA's picture); or None.
    channels_in: str | None = None
