"""JSON from files that nobody vouches for: regular files of bounded size, strict JSON, no key twice.

`parse` serves the headers of safetensors files too. What a document may say is up to the schemas in `jaxpa.config`.
"""

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

MAX_DOCUMENT = 4 << 20  # bytes; FLUX.1's configs and indices take 0.1 MB at most
MAX_VOCABULARY = 32 << 20  # T5's takes 2.4 MB


def check_regular(path: Path) -> int:
    """The size of a regular file in bytes. Raises ValueError for anything else, which is not opened.

    Reading a named pipe waits for a writer, and a device may never end.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    for kind, matches in (
        ("a folder", stat.S_ISDIR),
        ("a named pipe", stat.S_ISFIFO),
        ("a socket", stat.S_ISSOCK),
        ("a device", lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode)),
    ):
        if matches(status.st_mode):
            raise ValueError(f"this is {kind}, not a file")
    return status.st_size


def parse(text: bytes | str) -> dict[str, Any]:
    """A JSON object. Raises ValueError for what is not one, a key that stands twice, NaN, and deep nesting."""
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        content = json.loads(decoded, object_pairs_hook=_once, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise ValueError("not JSON (it is not UTF-8)") from None
    except RecursionError:
        raise ValueError("not JSON that can be read (it is nested too deeply)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} stands there twice")
    return content


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a number in JSON")


def read_json(path: Path, limit: int = MAX_DOCUMENT) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError that names the file where it is missing or is none."""
    try:
        size = check_regular(path)
        if size > limit:
            raise ValueError(f"{size:,} bytes are too many for this file of a checkpoint (at most {limit:,})")
        return parse(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
