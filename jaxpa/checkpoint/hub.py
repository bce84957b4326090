"""Checkpoints of the Hugging Face hub: fetched by huggingface_hub into its usual cache, needed files only."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from jaxpa.checkpoint.files import SUFFIXES
from jaxpa.errors import CheckpointError

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
COMMIT = re.compile(r"[0-9a-f]{40}")
PREFIX = "hf://"

PATIENCE = 20  # seconds until a server that says nothing is given up

# They lie beside the files that are wanted, under names that match the same patterns.
VARIANTS = ["*.fp16.*", "*.fp8*", "*.int8*", "*.non_ema*", "*.onnx", "*.bin", "*.msgpack"]


def hub_id(source: str) -> str | None:
    """The `owner/name` in a source, or None where it is a local path.

    What exists here, begins like a path, ends as a file of weights does, or lies in a folder that exists, is local;
    `hf://` in front says otherwise.
    """
    if source.startswith(PREFIX):
        return source.removeprefix(PREFIX)
    path = os.path.expanduser(source)
    local = os.path.exists(path) or os.path.exists(os.path.dirname(path) or ".") or source.endswith(SUFFIXES)
    return None if local or not ID.fullmatch(source) else source


def fetch(repo: str, parts: Iterable[str], download: bool = True) -> Path:
    """The folder in the cache with a repository's configs, tokenizers and the weights of these parts.

    `download=False` looks into the cache only. Raises CheckpointError where the hub gives nothing.
    """
    from huggingface_hub import snapshot_download

    patterns = ["model_index.json", "jaxpa.json", "*/*config.json", "*/*.index.json", "tokenizer/*", "tokenizer_2/*"]
    patterns += [f"{part}/*.safetensors" for part in parts]
    try:
        online = download and _answers(repo)
        folder = Path(
            snapshot_download(repo, allow_patterns=patterns, ignore_patterns=VARIANTS, local_files_only=not online)
        )
    except Exception as error:  # a server may answer with anything, and the client then raises anything
        raise CheckpointError(_explain(repo, error, download)) from error
    if in_cache(folder) and not COMMIT.fullmatch(folder.name):  # a reference that leads elsewhere
        raise CheckpointError(
            f"{repo} has a damaged entry in the cache: delete {_entry(repo)}, and it is fetched again"
        )
    if not any(folder.glob("*/config.json")):
        raise CheckpointError(
            f"{repo} has no pipeline in diffusers' layout (folders transformer, vae, text_encoder, text_encoder_2)\n"
            "  - of a repository with a single .safetensors or .gguf file, download the file and name its path"
        )
    return folder


def _answers(repo: str) -> bool:
    """Whether the hub can be asked about a repository; False: it cannot be reached, so only the cache is left.

    Raises what its client raises for an answer, and TimeoutError where there is none and nothing is cached: the
    client's own attempts would take minutes.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    transport: type[Exception] = HfHubHTTPError.__mro__[1]  # of the HTTP library, which differs between versions
    try:
        if not COMMIT.fullmatch(HfApi().repo_info(repo, timeout=PATIENCE).sha or ""):
            raise ValueError("its reply names no commit")
        return True
    except OfflineModeIsEnabled:
        return False
    except json.JSONDecodeError as error:
        raise ValueError("its reply is not the hub's (a page to sign in to a network?)") from error
    except (transport, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is None and isinstance(try_to_load_from_cache(repo, "model_index.json"), str):
            return False
        if "Timeout" in type(error).__name__:
            raise TimeoutError(f"the hub does not answer within {PATIENCE} seconds") from error
        raise


def _entry(repo: str) -> Path:
    """Where the hub's cache keeps a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def in_cache(path: Path) -> bool:
    """Whether a path lies in the hub's cache, as far as its name tells."""
    return "snapshots" in path.parts and any(part.startswith("models--") for part in path.parts)


def _explain(repo: str, error: Exception, download: bool = True) -> str:
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
        lines = [
            f"{repo} does not exist on the hub, or is private.",
            f"visit {page} to check the name",
            f"if it is private, {login}",
        ]
    elif isinstance(error, HFValidationError):
        lines = [f"{repo!r} is not a repository's name (owner/name)."]
    elif not download:
        lines = [
            f"{repo} is not in the local cache, and nothing is downloaded for this.",
            f"visit {page}, or fetch it with `hf download {repo}`",
        ]
    elif status := _status(error):
        lines = [
            f"{repo} could not be fetched: the hub answers with HTTP status {status}{STATUS.get(status, '')}",
            f"visit {page}; if it asks for consent or is private, {login}",
        ]
    elif isinstance(error, TimeoutError):
        lines = [f"{repo} could not be fetched: {error}", "check the network, and try again later"]
    elif isinstance(error, UnicodeError):
        lines = [
            f"{repo} could not be asked for: the access token or another header is not ASCII text.",
            "check HF_TOKEN, or log in again with `hf auth login`",
        ]
    elif isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        lines = [
            f"{repo} is not in the local cache, and the hub cannot be reached.",
            "check the network, and that HF_HUB_OFFLINE is not set",
            f"visit {page}; if it asks for consent or is private, {login}",
        ]
    else:
        reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
        lines = [
            f"{repo} could not be fetched: {reason} ({type(error).__name__})",
            f"visit {page}",
            f"if it asks for consent or is private, {login}",
        ]
    local = "or pass a local path instead: a diffusers or converted folder, or a .safetensors file"
    if isinstance(error, LocalEntryNotFoundError) and _entry(repo).exists():
        lines.append(f"what {_entry(repo)} holds is incomplete or damaged: delete it, and it is fetched again")
    return "\n".join([lines[0], *(f"  - {line}" for line in (*lines[1:], local))])


STATUS = {
    403: " (forbidden)",
    429: " (too many requests: wait)",
    500: " (a fault of the hub)",
    503: " (not available now)",
}


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, which may be the cause of the one that is raised."""
    while error is not None:
        if isinstance(status := getattr(getattr(error, "response", None), "status_code", None), int):
            return status
        error = error.__cause__
    return None
