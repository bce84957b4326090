"""Whether the components of a checkpoint belong together, from headers and configs alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpa.checkpoint.documents import MAX_VOCABULARY, check_regular, read_json
from jaxpa.checkpoint.keys import Config
from jaxpa.config import AutoencoderConfig, CLIPConfig, T5Config, shown
from jaxpa.encoders.vocabulary import CONFIG, Kind, check_ids, find_files, vocabulary
from jaxpa.errors import CheckpointError

TOKENIZERS: dict[str, Kind] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
CLIP_TOKENS = 77  # that FLUX gives to CLIP


def mismatches(configs: Mapping[str, Config | None]) -> list[str]:
    """What does not fit between components, in a line each; a config that is not known fits everything."""
    transformer: Any = configs.get("transformer")  # a `BackboneConfig`
    if transformer is None:
        return []
    faults = []

    def compare(name: str, key: str, value: int, ours: str, wanted: int) -> None:
        if value != wanted:
            faults.append(f"the {name} does not fit the transformer: {key} is {value}, {ours} is {wanted}")

    if isinstance(t5 := configs.get("text_encoder_2"), T5Config):
        compare("text_encoder_2", "d_model", t5.d_model, "joint_attention_dim", transformer.joint_attention_dim)
    if isinstance(clip := configs.get("text_encoder"), CLIPConfig):
        width = transformer.pooled_projection_dim
        compare("text_encoder", "hidden_size", clip.hidden_size, "pooled_projection_dim", width)
    if isinstance(vae := configs.get("vae"), AutoencoderConfig):
        token = 4 * vae.latent_channels  # of 2 x 2 cells
        out = "out_channels" if transformer.out_channels else "in_channels"
        compare("vae", "4 x latent_channels", token, out, transformer.velocity_channels)
        mask = 4 * vae.downscale**2  # a pixel's each, for Fill
        if not faults and transformer.in_channels not in (token, 2 * token, 2 * token + mask):
            faults.append(
                f"the transformer's in_channels are {transformer.in_channels}; with this vae they can be {token} (a "
                f"picture's tokens), {2 * token} (and one to follow), or {2 * token + mask} (and a mask)"
            )
    return faults


def tokenizer_faults(folder: Path, kind: Kind, config: Config | None) -> list[str]:
    """What keeps a tokenizer from being read, or from belonging to the encoder with this config."""
    try:
        paths = find_files(folder, kind)
        limit = token_limit(folder / CONFIG)
        for path in paths:
            if path.suffix == ".json":
                read_json(path, MAX_VOCABULARY)
            check_regular(path)
        words = vocabulary(paths)
    except (CheckpointError, ValueError) as error:
        return [str(error)]
    try:
        if isinstance(config, CLIPConfig | T5Config):
            check_ids(folder, words, config.vocab_size)
    except CheckpointError as error:
        return [str(error)]
    if isinstance(config, CLIPConfig) and (tokens := min(limit, CLIP_TOKENS)) > config.max_position_embeddings:
        known = config.max_position_embeddings
        return [f"{folder}: prompts of {tokens} tokens (model_max_length) for a text_encoder of {known} positions"]
    return []


def token_limit(file: Path) -> int:
    """`model_max_length` of a tokenizer's config; a tokenizer without a limit has none, or a huge number.

    Raises ValueError that names the file and what is wrong with it.
    """
    content = read_json(file)
    limit: Any = content.get("model_max_length", CLIP_TOKENS)
    if type(limit) not in (int, float) or not limit >= 2:
        raise ValueError(f"{file}: model_max_length is {shown(limit)}; allowed: a whole number, at least 2")
    words = ("bos_token", "eos_token", "pad_token", "unk_token", "tokenizer_class")
    for key in words:
        value = content.get(key)
        word = value.get("content") if isinstance(value, dict) else value
        if not isinstance(word, str | None):
            raise ValueError(f"{file}: {key} is {shown(value)}; allowed: a string")
    return int(min(limit, 2**31))
