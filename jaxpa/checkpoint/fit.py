"""Whether the components of a checkpoint belong together, from headers and configs alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxpa.backbones.registry import backbone_of
from jaxpa.checkpoint.documents import MAX_VOCABULARY, check_regular, read_json
from jaxpa.checkpoint.keys import Config
from jaxpa.config import CLIPConfig, T5Config, shown
from jaxpa.encoders.vocabulary import CONFIG, Kind, check_ids, find_files, vocabulary
from jaxpa.errors import CheckpointError

TOKENIZERS: dict[str, Kind] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
CLIP_TOKENS = 77  # that pipelines give to CLIP


def mismatches(configs: Mapping[str, Config | None]) -> list[str]:
    """What does not fit between components, in a line each; a config that is not known fits everything."""
    transformer = configs.get("transformer")
    return [] if transformer is None else backbone_of(transformer).misfits(transformer, configs)


def tokenizer_faults(folder: Path, kind: Kind, config: Config | None) -> list[str]:
    """What keeps a tokenizer from being read, or from belonging to the encoder with this config."""
    try:
        paths = find_files(folder, kind)
        limit = _token_limit(folder / CONFIG)
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


def _token_limit(file: Path) -> int:
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
