"""The shapes and settings of a checkpoint, read from its own JSON files.

Every shape comment of the package uses this alphabet of axes:

    B  batch rows            N  image tokens (h * w, row-major)     M  text tokens
    C  token channels (64)   D  model width                         H  attention heads
    Dh head width            K  concatenated (context) tokens       L  stacked blocks
    Dt text width (T5)       Dv pooled text width (CLIP)            S  sampling steps
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import cache
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    Self,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, Gt, Le, Len

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Weights = Literal["int8", "fp8", "w8a8"]  # of eight bits: see `jaxpa.quantised`
Asked = Literal["int8", "fp8", "w8a8", "wide"]  # wide: of as many bits as all other numbers, whatever the files have
VariantName = Literal["text", "kontext", "fill", "control", "canny", "depth"]  # see `jaxpa.backbones.variants`

# Ranges of the fields. They bound what a wrong file can ask for; every FLUX checkpoint lies far inside them.
Blocks = Annotated[int, Ge(1), Le(1024)]
Channels = Annotated[int, Ge(1), Le(2**16)]
Rows = Annotated[int, Ge(1), Le(2**22)]  # of an embedding
Tokens = Annotated[int, Ge(1), Le(2**20)]
Axis = Annotated[int, Ge(2), Le(1024)]
Epsilon = Annotated[float, Gt(0), Le(1)]
Shift = Annotated[float, Gt(0), Le(1000)]


class Rounding(NamedTuple):
    """Of how many bits the blocks of a component are; None: of as many as its other numbers."""

    transformer: Weights | None = None
    text_encoder_2: Weights | None = None

    def of(self, component: str) -> Weights | None:
        """That of a component, by its folder's name."""
        return self._asdict().get(component)


TIME_WIDTH = 256  # channels of the sinusoids of time and guidance
WIDE = Rounding()  # no block has fewer bits than the rest


class FromJson:
    """A config that is read from a JSON file. Keys of the file that are not named here are ignored.

    SUPPORTED: keys that are not fields, and those of their values that are implemented; a key may be missing.
    """

    SUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Raises ValueError, which names every key of a wrong type or range, its value, and what is allowed."""
        faults = [
            f"{key} is {shown(content[key])}; supported: {' or '.join(map(shown, values))}"
            for key, values in cls.SUPPORTED.items()
            if key in content and not any(type(content[key]) is type(each) and content[key] == each for each in values)
        ]
        names = [field.name for field in dataclasses.fields(cls) if field.name in content]  # type: ignore[arg-type]
        given = {name: content[name] for name in names}
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        faults += [fault for name, value in given.items() if (fault := _fault(cls, name, value))]
        if faults:
            raise ValueError("; ".join(faults))
        return cls(**given)


def _fault(cls: type, name: str, value: Any) -> str | None:
    from pydantic import ValidationError  # here: the networks' own import of this module stays light

    annotation, adapter = _field(cls, name)
    try:
        adapter.validate_python(value, strict=True)
        if not isinstance(value, float) or math.isfinite(value):
            return None
    except ValidationError:
        pass
    return f"{name} is {shown(value)}; allowed: {allowed(annotation)}"


def shown(value: Any) -> str:
    """A value as its JSON file has it, shortened."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


@cache
def _field(cls: type, name: str) -> "tuple[Any, TypeAdapter[Any]]":
    from pydantic import TypeAdapter

    annotation = get_type_hints(cls, include_extras=True)[name]
    return annotation, TypeAdapter(annotation)


def allowed(annotation: Any) -> str:
    """A field's type and range, in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        said = allowed(parts[0])
        for limit in parts[1:]:
            match limit:
                case Ge(ge=least):
                    said += f", at least {least}"
                case Gt(gt=bound):
                    said += f", above {bound}"
                case Le(le=most):
                    said += f", at most {most}"
                case Len(min_length=least, max_length=most):
                    said = f"{least} to {most} numbers in {said}"
        return said
    if origin is Literal:
        return " or ".join(map(shown, parts))
    if origin is dict:
        return f"an object with, under each name, {allowed(parts[1])}"
    if origin in (tuple, list):
        count = "" if origin is list or parts[-1] is ... else f" {len(parts)}:"
        return f"a list of{count} {allowed(parts[0])}"
    if parts:
        return " or ".join(map(allowed, parts))
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a string"}
    return words.get(annotation, "null")


@dataclass(frozen=True)
class TransformerConfig(FromJson):
    """The MM-DiT, in diffusers' names (`transformer/config.json`). Defaults: FLUX.1-dev."""

    SUPPORTED = {"patch_size": (1,)}  # noqa: RUF012

    in_channels: Channels = 64
    num_layers: Blocks = 19  # double stream blocks
    num_single_layers: Blocks = 38
    num_attention_heads: Annotated[int, Ge(1), Le(1024)] = 24
    attention_head_dim: Annotated[int, Ge(2), Le(1024)] = 128
    joint_attention_dim: Channels = 4096  # Dt
    pooled_projection_dim: Channels = 768  # Dv
    guidance_embeds: bool = True
    axes_dims_rope: tuple[Axis, Axis, Axis] = (16, 56, 56)
    out_channels: Channels | None = None  # None: in_channels; fewer if a picture to keep or to follow is an input too

    def __post_init__(self) -> None:
        if any(axis % 2 for axis in self.axes_dims_rope):
            raise ValueError(
                f"axes_dims_rope {self.axes_dims_rope}: each axis must be even, since channels turn in pairs"
            )
        if sum(self.axes_dims_rope) != self.attention_head_dim:
            raise ValueError(
                f"axes_dims_rope {self.axes_dims_rope} must add up to attention_head_dim {self.attention_head_dim}"
            )

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_width(self) -> int:
        return 4 * self.width

    @property
    def blocks(self) -> int:
        """Double and single."""
        return self.num_layers + self.num_single_layers

    @property
    def velocity_channels(self) -> int:
        """C: channels of a sampled token."""
        return self.in_channels if self.out_channels is None else self.out_channels


@dataclass(frozen=True)
class AutoencoderConfig(FromJson):
    """The KL autoencoder (`vae/config.json`). Defaults: FLUX.1."""

    SUPPORTED = {  # noqa: RUF012
        "act_fn": ("silu",),
        "use_quant_conv": (False,),
        "use_post_quant_conv": (False,),
        "latents_mean": (None,),
        "latents_std": (None,),
    }

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    latent_channels: Annotated[int, Ge(1), Le(1024)] = 16
    block_out_channels: Annotated[tuple[Channels, ...], Len(1, 8)] = (128, 256, 512, 512)
    layers_per_block: Annotated[int, Ge(1), Le(16)] = 2
    norm_num_groups: Channels = 32
    mid_block_add_attention: bool = True
    scaling_factor: Annotated[float, Gt(0), Le(1000)] = 0.3611
    shift_factor: Annotated[float, Ge(-1000), Le(1000)] = 0.1159

    def __post_init__(self) -> None:
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise ValueError(
                f"block_out_channels {self.block_out_channels} must be multiples of norm_num_groups "
                f"{self.norm_num_groups}"
            )

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along a side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class T5Config(FromJson):
    """The T5 v1.1 encoder (`text_encoder_2/config.json`). Defaults: T5-XXL."""

    SUPPORTED = {"feed_forward_proj": ("gated-gelu",)}  # noqa: RUF012

    vocab_size: Rows = 32128
    d_model: Channels = 4096
    d_kv: Channels = 64
    d_ff: Channels = 10240
    num_layers: Blocks = 24
    num_heads: Annotated[int, Ge(1), Le(1024)] = 64
    relative_attention_num_buckets: Annotated[int, Ge(4), Le(2**16)] = 32
    relative_attention_max_distance: Tokens = 128
    layer_norm_epsilon: Epsilon = 1e-6

    def __post_init__(self) -> None:
        exact = self.relative_attention_num_buckets // 4  # each direction has half; half of those count single steps
        if self.relative_attention_max_distance <= exact:
            raise ValueError(
                f"relative_attention_max_distance {self.relative_attention_max_distance} must be above {exact}, "
                "a quarter of relative_attention_num_buckets"
            )


@dataclass(frozen=True)
class CLIPConfig(FromJson):
    """The CLIP text encoder (`text_encoder/config.json`). Defaults: CLIP ViT-L/14."""

    vocab_size: Rows = 49408
    hidden_size: Channels = 768
    intermediate_size: Channels = 3072
    num_hidden_layers: Blocks = 12
    num_attention_heads: Annotated[int, Ge(1), Le(1024)] = 12
    max_position_embeddings: Tokens = 77
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    eos_token_id: Annotated[int, Ge(0), Le(2**22)] = 2

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.eos_token_id >= self.vocab_size:
            raise ValueError(f"eos_token_id {self.eos_token_id} must be below vocab_size {self.vocab_size}")


@dataclass(frozen=True)
class SiglipVisionConfig(FromJson):
    """SigLIP's vision transformer (`image_encoder/config.json`). Defaults: transformers' own, which files leave out."""

    hidden_size: Channels = 768
    intermediate_size: Channels = 3072
    num_hidden_layers: Blocks = 12
    num_attention_heads: Annotated[int, Ge(1), Le(1024)] = 12
    num_channels: Literal[3] = 3
    image_size: Annotated[int, Ge(1), Le(2048)] = 224  # pixels along a side
    patch_size: Annotated[int, Ge(1), Le(2048)] = 16
    hidden_act: Literal["gelu_pytorch_tanh", "quick_gelu", "gelu"] = "gelu_pytorch_tanh"
    layer_norm_eps: Epsilon = 1e-6

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size {self.patch_size} must be at most image_size {self.image_size}")

    @property
    def tokens(self) -> int:
        """Of a picture; pixels beyond the last whole patch are not read."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class CLIPVisionConfig(SiglipVisionConfig):
    """CLIP's vision transformer with its projection. Defaults: transformers' own."""

    patch_size: Annotated[int, Ge(1), Le(2048)] = 32
    hidden_act: Literal["gelu_pytorch_tanh", "quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    projection_dim: Channels = 512


@dataclass(frozen=True)
class ReduxConfig(FromJson):
    """FLUX.1-Redux's two linear layers (`image_embedder/config.json`)."""

    redux_dim: Channels = 1152  # of SigLIP's states
    txt_in_features: Channels = 4096  # Dt


@dataclass(frozen=True)
class ScheduleConfig(FromJson):
    """Flow times (`scheduler/scheduler_config.json`). Defaults: FLUX.1-dev; schnell does not shift."""

    SUPPORTED = {  # noqa: RUF012
        "num_train_timesteps": (1000,),
        "use_karras_sigmas": (False, None),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
        "invert_sigmas": (False, None),
        "stochastic_sampling": (False, None),
        "shift_terminal": (None,),
        "time_shift_type": ("exponential",),
    }

    use_dynamic_shifting: bool = True
    shift: Shift = 1.0  # a constant shift, used where the shift is not dynamic
    base_shift: Annotated[float, Ge(-20), Le(20)] = 0.5
    max_shift: Annotated[float, Ge(-20), Le(20)] = 1.15
    base_image_seq_len: Tokens = 256
    max_image_seq_len: Tokens = 4096

    def __post_init__(self) -> None:
        if self.base_image_seq_len >= self.max_image_seq_len:
            raise ValueError(
                f"base_image_seq_len {self.base_image_seq_len} must be below max_image_seq_len {self.max_image_seq_len}"
            )


@dataclass(frozen=True)
class FluxConfig:
    """All the parts of a FLUX pipeline."""

    transformer: TransformerConfig = TransformerConfig()
    vae: AutoencoderConfig = AutoencoderConfig()
    text_encoder: CLIPConfig = CLIPConfig()
    text_encoder_2: T5Config = T5Config()
    scheduler: ScheduleConfig = ScheduleConfig()


@dataclass(frozen=True)
class Settings(FromJson):
    """What a checkpoint uses unless told otherwise (`jaxpa.json` of its folder). Defaults: FLUX.1-dev."""

    variant: VariantName = "text"  # what it reads besides the prompt
    preset: Literal["official", "paper", "mini"] = "official"  # of personalisation
    size: Annotated[int, Ge(8), Le(2048)] = 1024  # pixels along a side
    steps: Annotated[int, Ge(1), Le(1000)] = 28
    guidance: Annotated[float, Ge(0), Le(1000)] = 3.5
    guidance_with_references: Annotated[float, Ge(0), Le(1000)] | None = None  # None: the same
    max_length: Annotated[int, Ge(1), Le(4096)] = 512  # T5 tokens
    words: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # all words of its training, by kind


def flux_dev() -> FluxConfig:
    """FLUX.1-dev: guidance embedding, resolution-dependent shift."""
    return FluxConfig()


def flux_schnell() -> FluxConfig:
    """FLUX.1-schnell: no guidance embedding, no shift, four steps."""
    return FluxConfig(
        transformer=TransformerConfig(guidance_embeds=False),
        scheduler=ScheduleConfig(use_dynamic_shifting=False),
    )
