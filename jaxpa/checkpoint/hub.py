"""Checkpoints of the Hugging Face hub: fetched by huggingface_hub into its usual cache, needed files only."""

import re
from collections.abc import Iterable
from pathlib import Path

from jaxpa.errors import CheckpointError

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PREFIX = "hf://"

# Variants lie beside the files that are wanted, under names that match the same patterns.
VARIANTS = ["*.fp16.*", "*.fp8*", "*.int8*", "*.non_ema*", "*.onnx", "*.bin", "*.msgpack"]


def hub_id(source: str) -> str | None:
    """The `owner/name` in a source, or None where it is a local path.

    What exists here, begins like a path, ends in .safetensors, or lies in a folder that exists, is local; `hf://` in
    front says otherwise.
    """
    if source.startswith(PREFIX):
        return source.removeprefix(PREFIX)
    path = Path(source).expanduser()
    local = path.exists() or path.parent.exists() or source.endswith(".safetensors")
    return None if local or not ID.fullmatch(source) else source


def fetch(repo: str, parts: Iterable[str], download: bool = True) -> Path:
    """The folder in the cache with a repository's configs, tokenizers and the weights of these parts.

    `download=False` looks into the cache only. Raises CheckpointError where the hub gives nothing.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    transport: type[Exception] = HfHubHTTPError.__mro__[1]  # of the HTTP library, which differs between versions
    patterns = ["model_index.json", "jaxpa.json", "*/*config.json", "*/*.index.json", "tokenizer/*", "tokenizer_2/*"]
    patterns += [f"{part}/*.safetensors" for part in parts]
    try:
        return Path(
            snapshot_download(repo, allow_patterns=patterns, ignore_patterns=VARIANTS, local_files_only=not download)
        )
    except (HfHubHTTPError, transport, HFValidationError, OSError) as error:
        raise CheckpointError(explain(repo, error, download)) from error


def explain(repo: str, error: Exception, download: bool = True) -> str:
    """One screen: what went wrong, and the ways on."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    page = f"https://huggingface.co/{repo}"
    login = "log in with `hf auth login` (or set HF_TOKEN) and try again"
    if isinstance(error, GatedRepoError):
        lines = [f"{repo} is gated: its owner wants your consent first.", f"visit {page} and accept the terms", login]
    elif isinstance(error, RepositoryNotFoundError):
        lines = [f"{repo} does not exist on the hub, or is private.", f"visit {page} to check the name",
                 f"if it is private, {login}"]  # fmt: skip
    elif isinstance(error, HFValidationError):
        lines = [f"{repo!r} is not a repository's name (owner/name)."]
    elif not download:
        lines = [f"{repo} is not in the local cache, and nothing is downloaded for this.",
                 f"visit {page}, or fetch it with `hf download {repo}`"]  # fmt: skip
    elif isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        lines = [f"{repo} is not in the local cache, and the hub cannot be reached.",
                 "check the network, and that HF_HUB_OFFLINE is not set",
                 f"visit {page}; if it asks for consent or is private, {login}"]  # fmt: skip
    else:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        lines = [f"{repo} could not be fetched: {reason}",
                 f"visit {page}", f"if it asks for consent or is private, {login}"]  # fmt: skip
    local = "or pass a local path instead: a diffusers folder, a .safetensors file of FLUX, or a converted folder"
    return "\n".join([lines[0], *(f"  - {line}" for line in (*lines[1:], local))])
