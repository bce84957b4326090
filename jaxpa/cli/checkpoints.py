"""The commands about files: convert, info."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from jaxpa.cli import console
from jaxpa.config import VariantName
from jaxpa.errors import JaxpaError


@dataclass
class ConvertCommand:
    """Write a checkpoint in the layout that the networks use: it loads faster, without transposing."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """Any checkpoint that --model takes."""
    folder: Annotated[Positional[Path], arg(metavar="FOLDER")]
    """A new folder."""
    components: str | None = None
    """A folder or hub id that has the rest, where SOURCE is a single file."""
    dtype: Literal["stored", "float32", "bfloat16"] = "stored"
    """Type of the tensors that are written."""
    variant: VariantName | None = None
    """Which of FLUX.1's sister models it is, where its files do not say."""
    weights: Literal["int8", "fp8", "wide", "bf16"] | None = None
    """Round the blocks of the transformer and of T5 to eight bits, each output with a scale: half the size of bfloat16.
    Such a folder loads as it is stored. wide: widen those of fp8 and GGUF files; bf16: that, and --dtype bfloat16.
    Default: as --weights has it where a checkpoint is loaded."""
    json: bool = False
    """One JSON line on stdout; everything else goes to stderr."""
    quiet: bool = False
    """Print only warnings and errors."""

    def run(self) -> int:
        from jaxpa.checkpoint.convert import convert

        dtype, weights = None if self.dtype == "stored" else self.dtype, self.weights
        if weights == "bf16":
            if dtype == "float32":
                raise JaxpaError("--weights bf16 and --dtype float32 contradict each other: leave one out")
            dtype, weights = "bfloat16", "wide"
        progress = console.Progress().show
        folder = convert(self.source, self.folder, self.components, dtype, progress, self.variant, weights)
        console.report(self.json, {"folder": str(folder)}, [f"wrote {folder}; use it with --model {folder}"])
        return 0


@dataclass
class InfoCommand:
    """Say what a checkpoint or a LoRA holds, from its headers alone; the status is 1 if it would not load. Or say how a
    picture was made, if jaxpa made it."""

    source: Annotated[Positional[str], arg(metavar="[SOURCE]")] = "mini"
    """A pipeline, one component's folder, a single file, a hub id, a LoRA's file, or a picture."""
    components: str | None = None
    """A folder or hub id that has the rest, where SOURCE is a single file."""
    variant: VariantName | None = None
    """Which of FLUX.1's sister models it is, where its files do not say."""
    model: str | None = None
    """What a LoRA is meant for. Default: FLUX.1-dev or mini, whichever has more of its layers."""
    json: bool = False
    """One JSON line instead of a table."""

    def run(self) -> int:
        from jaxpa.adapters.report import format_adapter, info_adapter, is_adapter
        from jaxpa.checkpoint.report import format_info, info
        from jaxpa.media.images import FORMATS

        if Path(self.source).suffix.lower() in FORMATS and not Path(self.source).is_dir():
            return self.say_how_made()
        if lora := is_adapter(self.source):
            self.refuse(["components", "variant"], "a LoRA")
            content = info_adapter(self.source, self.model)
        else:
            self.refuse(["model"], "no LoRA")
            content = info(self.source, self.components, self.variant)
        if self.json:
            console.report(True, content, ())
        else:
            print(format_adapter(content) if lora else format_info(content))
        return 0 if content["loads"] else 1

    def refuse(self, names: Sequence[str], what: str) -> None:
        """Raise JaxpaError for a flag that is given, and that says nothing of such a source."""
        for name in names:
            if getattr(self, name) is not None:
                raise JaxpaError(f"--{name} would have no effect: {self.source} is {what}. Leave it out")

    def say_how_made(self) -> int:
        """About a picture."""
        from jaxpa.request.origin import in_words, read_origin

        self.refuse(["model", "components", "variant"], "a picture")
        record, content = read_origin(self.source)
        if self.json:
            console.report(True, content, ())
        else:
            print(in_words(self.source, record))
        return 0
