"""The files of a tokenizer, and the ids that it can give.

Where files are missing, transformers makes an empty vocabulary, with which an encoder would read only unknown words.
Therefore the files are looked for by name, and their ids are compared with the rows of the encoder's embedding.
"""

from pathlib import Path
from typing import Any, Literal

from jaxpa.errors import CheckpointError

Kind = Literal["tokenizer", "tokenizer_2"]  # folders of CLIP's and of T5's, as diffusers names them

# Any one of these sets holds a whole vocabulary; the first that is complete is read.
FILES: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "tokenizer": (("tokenizer.json",), ("vocab.json", "merges.txt")),
    "tokenizer_2": (("tokenizer.json",), ("spiece.model",)),
}
CONFIG = "tokenizer_config.json"
PADDING = 128  # rows that an embedding may have beyond its vocabulary, to make its size round


def find_files(folder: Path, kind: Kind) -> tuple[Path, ...]:
    """The files of a tokenizer's vocabulary. Raises CheckpointError if any of them, or its config, is missing."""
    if not folder.is_dir():
        raise CheckpointError(f"there is no tokenizer folder {folder}")
    sets = [tuple(folder / name for name in names) for names in FILES[kind]]
    complete = next((paths for paths in sets if all(path.is_file() for path in paths)), None)
    if complete is None or not (folder / CONFIG).is_file():
        wanted = " or ".join(" and ".join(names) for names in FILES[kind])
        raise CheckpointError(f"{folder}: a tokenizer's files are missing: it needs {CONFIG}, and {wanted}")
    return complete


def vocabulary(paths: tuple[Path, ...]) -> dict[str, int]:
    """Words -> ids, from the files of `find_files`. Raises CheckpointError, which names a file that cannot be read."""
    try:
        return _read(paths)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a bad file makes the Rust part panic, which is not an Exception
        raise CheckpointError(f"{paths[0]} cannot be read: {error}") from None


def _read(paths: tuple[Path, ...]) -> dict[str, int]:
    if paths[0].name == "spiece.model":
        from transformers import T5Tokenizer  # here: the import takes a second

        return T5Tokenizer.from_pretrained(paths[0].parent, local_files_only=True).get_vocab()
    import tokenizers

    if len(paths) == 2:
        model: Any = tokenizers.models.BPE.from_file(*map(str, paths))
        return tokenizers.Tokenizer(model).get_vocab(with_added_tokens=True)
    return tokenizers.Tokenizer.from_file(str(paths[0])).get_vocab(with_added_tokens=True)


def check_ids(folder: Path, words: dict[str, int], rows: int) -> None:
    """Raise CheckpointError if an embedding of so many rows cannot have been trained with this vocabulary."""
    if not words:
        raise CheckpointError(f"{folder}: the vocabulary is empty")
    largest = max(words.values())
    if largest >= rows:
        raise CheckpointError(f"{folder}: the vocabulary's largest id is {largest}, the text encoder has {rows} rows")
    if largest < rows - PADDING:
        raise CheckpointError(
            f"{folder}: a vocabulary of {largest + 1} words does not belong to a text encoder of {rows} rows"
        )
