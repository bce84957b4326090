"""What a checkpoint is made of, read from its own JSON files.

The axis alphabet that every shape comment of the package uses:

    B  batch rows            N  image tokens (h * w, row-major)     M  text tokens
    C  token channels (64)   D  model width                         H  attention heads
    Dh head width            K  concatenated (context) tokens       L  stacked blocks
    Dt text width (T5)       Dv pooled text width (CLIP)            S  sampling steps
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self


def _from_json(cls: Any, json: dict[str, Any], required: dict[str, tuple[Any, ...]]) -> Any:
    """Pick the fields of `cls` out of a config file; refuse a value that no code here implements.

    `required` maps a key to the values that are supported; a missing key is the reference's default.
    """
    for key, allowed in required.items():
        if key in json and json[key] not in allowed:
            raise ValueError(f"unsupported configuration: {key} = {json[key]!r} (supported: {list(allowed)})")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {name: json[name] for name in fields if json.get(name) is not None}
    return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


@dataclass(frozen=True)
class TransformerConfig:
    """The MM-DiT, in diffusers' names (`transformer/config.json`). Defaults: FLUX.1-dev."""

    in_channels: int = 64
    num_layers: int = 19  # double stream blocks
    num_single_layers: int = 38
    num_attention_heads: int = 24
    attention_head_dim: int = 128
    joint_attention_dim: int = 4096  # Dt
    pooled_projection_dim: int = 768  # Dv
    guidance_embeds: bool = True
    axes_dims_rope: tuple[int, int, int] = (16, 56, 56)
    out_channels: int | None = None  # None: in_channels; fewer where a picture to keep or to follow comes in too

    def __post_init__(self) -> None:
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
    def velocity_channels(self) -> int:
        """C: channels of a token that is sampled."""
        return self.in_channels if self.out_channels is None else self.out_channels

    @classmethod
    def from_json(cls, json: dict[str, Any]) -> Self:
        return _from_json(cls, json, {"patch_size": (1,)})


@dataclass(frozen=True)
class AutoencoderConfig:
    """The KL autoencoder (`vae/config.json`). Defaults: FLUX.1."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    scaling_factor: float = 0.3611
    shift_factor: float = 0.1159

    @property
    def downscale(self) -> int:
        """Pixels per latent cell along a side."""
        return 2 ** (len(self.block_out_channels) - 1)

    @classmethod
    def from_json(cls, json: dict[str, Any]) -> Self:
        return _from_json(
            cls,
            json,
            {
                "act_fn": ("silu",),
                "use_quant_conv": (False,),
                "use_post_quant_conv": (False,),
                "latents_mean": (None,),
                "latents_std": (None,),
            },
        )


@dataclass(frozen=True)
class T5Config:
    """The T5 v1.1 encoder (`text_encoder_2/config.json`). Defaults: T5-XXL."""

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    @classmethod
    def from_json(cls, json: dict[str, Any]) -> Self:
        return _from_json(cls, json, {"feed_forward_proj": ("gated-gelu",)})


@dataclass(frozen=True)
class CLIPConfig:
    """The CLIP text encoder (`text_encoder/config.json`). Defaults: CLIP ViT-L/14."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 2

    @classmethod
    def from_json(cls, json: dict[str, Any]) -> Self:
        return _from_json(cls, json, {"hidden_act": ("quick_gelu", "gelu")})


@dataclass(frozen=True)
class ScheduleConfig:
    """Flow times (`scheduler/scheduler_config.json`). Defaults: FLUX.1-dev; schnell does not shift."""

    use_dynamic_shifting: bool = True
    shift: float = 1.0  # a constant shift, used where the shift is not dynamic
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096

    @classmethod
    def from_json(cls, json: dict[str, Any]) -> Self:
        off = (False, None)
        return _from_json(
            cls,
            json,
            {
                "use_karras_sigmas": off,
                "use_exponential_sigmas": off,
                "use_beta_sigmas": off,
                "invert_sigmas": off,
                "shift_terminal": (None,),
                "time_shift_type": ("exponential",),
            },
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
class Settings:
    """What suits a checkpoint where a user says nothing (`jaxpa.json` of its folder). Defaults: FLUX.1-dev."""

    preset: str = "official"  # of personalisation
    size: int = 1024  # pixels along a side
    steps: int = 28
    guidance: float = 3.5
    max_length: int = 512  # T5 tokens


def flux_dev() -> FluxConfig:
    """FLUX.1-dev: guidance embedding, resolution-dependent shift."""
    return FluxConfig()


def flux_schnell() -> FluxConfig:
    """FLUX.1-schnell: no guidance embedding, no shift, four steps."""
    return FluxConfig(
        transformer=TransformerConfig(guidance_embeds=False),
        scheduler=ScheduleConfig(use_dynamic_shifting=False),
    )
