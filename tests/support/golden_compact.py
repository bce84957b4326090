"""Makes the compact golden set that the repository carries from a full one; `golden_set.py` goes the other way.

As a script: `python tests/support/golden_compact.py FULL COMPACT`, where COMPACT is an empty folder (but for its
README.md).
"""

import base64
import hashlib
import json
import re
import shutil
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import safetensors
from golden_set import (
    BOOK,
    GOLDENS,
    PACKED,
    PIECES,
    SCHNELL,
    TOKENIZER,
    TOKENIZERS,
    WEIGHTS,
    Tensors,
    charsmap_field,
    digest,
    formulas_of,
    pack_file,
    rows_of,
    write,
)
from safetensors.numpy import load_file

# Whole tensors that the compact set goes without: each one's case is covered by another tensor that stays.
DROPPED = (
    "pa_inversion:ref1/*/?_steps",
    "pa_multi:tau0.6/eta0.7/*",
    "pa_forward:t0.2_*/*/*/*",
    "pa_forward:t0.8_*/concat_target/*/*",
    "pa_single:*/noise_pred",
    "pa_single:*/image",
    "pa_single:tau0.[39]/eta0.7/*",
    "pa_single:tau0.[39]/*/concat_*",
    "pa_single:tau0.6/eta0.7/concat_target/*",
)
SHARED_FROM = 4096  # bytes: smaller tensors are stored even if another one has the same rows


def compact(full: Path, into: Path) -> None:
    """Writes the compact form of the folder `full` into the empty folder `into`."""
    derived = [*WEIGHTS, *(f"{SCHNELL}/{folder}/*" for folder in TOKENIZERS), "README.md"]
    for path in sorted(p for p in full.rglob("*") if p.is_file()):
        name = path.relative_to(full).as_posix()
        if not any(fnmatchcase(name, pattern) for pattern in derived):
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, into / name)
    text, pieces = (full / TOKENIZER).read_bytes(), (full / PIECES).read_bytes()
    found = re.search(charsmap_field("(.+?)"), text)
    assert found, "no character map in tokenizer.json"
    (into / TOKENIZER).write_bytes(text.replace(found[0], charsmap_field("")))
    charsmap = base64.b64decode(found[1])
    start = pieces.index(charsmap)
    copied = [p for folder in TOKENIZERS for p in sorted((full / SCHNELL / folder).iterdir())]
    book: dict = {"charsmap": [start, start + len(charsmap)], "files": {}, "rows": {}, "sha256": {}}
    for path in [full / TOKENIZER, *copied]:
        book["files"][path.relative_to(full).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    for name in WEIGHTS:
        book["sha256"][name] = raw_digests(full / name)
    _compact_goldens(full, into, book)
    for path in sorted(into.rglob("*.safetensors")):
        path.with_name(path.name + PACKED).write_bytes(pack_file(path.read_bytes()))
        path.unlink()
    (into / BOOK).write_text(_dump(book) + "\n")


def raw_digests(path: Path) -> dict[str, str]:
    """The sha256 of each tensor's bytes in a file, whatever its type: numpy knows no bfloat16."""
    return {key: hashlib.sha256(v["data"]).hexdigest() for key, v in sorted(safetensors.deserialize(path.read_bytes()))}


def _compact_goldens(full: Path, into: Path, book: dict) -> None:
    whole: dict[str, Tensors] = {}
    pool: dict[bytes, tuple[str, str, int]] = {}
    for name in GOLDENS:
        stem = name.removesuffix(".safetensors")
        tensors = load_file(full / name)
        kept = [key for key in sorted(tensors) if not any(fnmatchcase(f"{stem}:{key}", drop) for drop in DROPPED)]
        whole[name] = {key: tensors[key] for key in kept}
        formulas, stored, recipes = formulas_of(name, whole), {}, {}
        for key, value in whole[name].items():
            if key not in formulas:
                recipe, own = _share(value, pool, (name, key))
                stored |= {key: own} if len(own) else {}
                recipes |= {key: [list(value.shape), recipe]} if recipe else {}
        for key in formulas:
            for i, row in enumerate(rows_of(whole[name][key])):
                pool.setdefault(row.tobytes(), (name, key, i))
        derived = sorted([*formulas, *recipes])
        if recipes:
            book["rows"][name] = recipes
        if derived:
            book["sha256"][name] = {key: digest(whole[name][key]) for key in derived}
        if derived or len(whole[name]) < len(tensors):
            write(stored, into / name, {})


def _share(value: np.ndarray, pool: dict, here: tuple[str, str]) -> tuple[list, np.ndarray]:
    """The runs of rows that rebuild `value` (none: it is stored as it is), and the rows to store."""
    if value.ndim < 2 or value.nbytes < SHARED_FROM:
        return [], value
    runs, own = [], []
    for i, row in enumerate(rows_of(value)):
        file, key, at = pool.setdefault(row.tobytes(), (*here, i))
        if (file, key) == here:
            own.append(row)
            if runs and len(runs[-1]) == 1:
                runs[-1][0] += 1
            else:
                runs.append([1])
        elif runs and runs[-1][:2] == [file, key] and sum(runs[-1][2:]) == at:
            runs[-1][3] += 1
        else:
            runs.append([file, key, at, 1])
    if len(own) == len(rows_of(value)):
        return [], value
    return runs, np.stack(own) if own else np.empty(0)


def _dump(node: object, depth: int = 0) -> str:
    """JSON with a line for each tensor."""
    if not isinstance(node, dict):
        return json.dumps(node)
    lines = [f"{' ' * (depth + 1)}{json.dumps(key)}: {_dump(value, depth + 1)}" for key, value in node.items()]
    return "{\n" + ",\n".join(lines) + "\n" + " " * depth + "}"


if __name__ == "__main__":
    compact(Path(sys.argv[1]), Path(sys.argv[2]))
