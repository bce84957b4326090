"""What the commands have in common: a checkpoint, the files that they write, a report."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from tyro.conf import OmitArgPrefixes, UseAppendAction

from jaxpa.cli import console, files
from jaxpa.cli.files import Outputs
from jaxpa.errors import JaxpaError, OutputError
from jaxpa.request.groups import Checkpoint
from jaxpa.request.request import Request
from jaxpa.request.spec import Spec

if TYPE_CHECKING:  # the networks are imported when a command runs
    from PIL import Image

    from jaxpa.checkpoint.source import Source
    from jaxpa.devices.timing import Clock
    from jaxpa.pipeline import Pipeline


OF_FILES = ("model", "components", "variant", "redux", "lora", "keep_lora")  # the flags about a checkpoint's files


@dataclass(kw_only=True)
class Command:
    """A command that asks something of a checkpoint."""

    checkpoint: OmitArgPrefixes[UseAppendAction[Checkpoint]] = field(default_factory=Checkpoint)
    json: bool = False
    """One JSON line on stdout; everything else goes to stderr."""
    quiet: bool = False
    """Print only warnings and errors."""

    @property
    def dtype(self) -> str | None:
        """Of the weights; None: what suits the device."""
        return None if self.checkpoint.dtype == "auto" else self.checkpoint.dtype

    def source(self, download: bool = False) -> "Source":
        """The checkpoint's headers; download: whether a hub id may be fetched for them."""
        from jaxpa.adapters.lay import adapt
        from jaxpa.checkpoint.redux import find_redux
        from jaxpa.checkpoint.source import resolve

        said = self.checkpoint
        known = {} if _headers is None else _headers
        for key in ((said, True), (said, download)):  # what was fetched is there for those who fetch nothing
            if key in known:
                return known[key]
        found = resolve(said.model, said.components, download=download, variant=said.variant)
        if said.redux is not None:
            found = replace(found, redux=find_redux(said.redux, download))
        known[said, download] = adapt(found, said.lora, said.keep_lora, said.weights)
        return known[said, download]

    def load(self, mesh: str | None = None) -> "Pipeline":
        return _load(self.checkpoint, mesh)

    def refuse(self, names: Iterable[str], why: str) -> None:
        """Raise JaxpaError for a flag of the checkpoint that is given, and that nothing reads."""
        for name in names:
            if getattr(self.checkpoint, name) != getattr(Checkpoint(), name):
                raise JaxpaError(f"--{name.replace('_', '-')} would have no effect: {why}. Leave it out")

    def begin(self) -> None:
        """What comes before anything asks JAX for a device."""

    def run(self) -> int:
        """Do it; the exit status."""
        raise NotImplementedError


_headers: dict[tuple[Checkpoint, bool], "Source"] | None = None


@contextmanager
def headers_read_once() -> Iterator[None]:
    """Within this, a checkpoint's headers are read once, however often a command, or several, ask for them."""
    global _headers
    before = _headers
    _headers = {} if before is None else before
    try:
        yield
    finally:
        _headers = before


def check_platform() -> None:
    """Raise JaxpaError where JAX has no device: here, and not in whatever needs one first."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError):  # JAX has both for a platform that is not there
        named = os.environ.get("JAX_PLATFORMS") or "the platforms that JAX knows"
        raise JaxpaError(f"JAX finds no device of {named}: unset JAX_PLATFORMS, or install JAX for it") from None


def spec_of(source: "Source") -> Spec:
    from jaxpa.checkpoint.load import settings_of

    return Spec(source.config, settings_of(source))


def _load(said: Checkpoint, mesh: str | None) -> "Pipeline":
    from jaxpa.adapters.lay import keeps
    from jaxpa.checkpoint.source import resolve

    bare = replace(said, lora=(), keep_lora=None)
    if not said.lora:
        return _load_once(bare, mesh)
    stored = resolve(said.model, said.components, variant=said.variant).rounded(said.weights)
    if keeps(said.keep_lora, stored):
        return _load_once(bare, mesh).with_loras(said.lora)
    return _load_once(said, mesh)


@lru_cache(maxsize=1)  # the next command of a batch finds the networks, and their compiled programs, still there
def _load_once(said: Checkpoint, mesh: str | None) -> "Pipeline":
    from jaxpa.devices.sharding import parse_mesh
    from jaxpa.pipeline import load

    dtype = None if said.dtype == "auto" else said.dtype
    devices = None if mesh is None else parse_mesh(mesh)
    given = {"components": said.components, "weights": said.weights, "resident": said.keep_resident}
    given |= {"variant": said.variant, "loras": said.lora, "keep_loras": False, "redux": said.redux}
    return load(said.model, dtype, devices, **given, on_step=console.Progress())


class Made(NamedTuple):
    """What a command has written: for --json, and in a line."""

    content: dict[str, Any]
    line: str


Recorded = tuple["Image.Image", dict[str, Any]]  # a picture, and what stands in its file about it
ELSEWHERE = Made({}, "")  # another process writes and reports


@dataclass(kw_only=True)
class Making(Command):
    """A command that writes pictures.

    An existing file is replaced only if jaxpa has made it (the command says so); other files need --force.
    """

    DEFAULT: ClassVar[Path] = Path("jaxpa.png")
    naming: ClassVar["Callable[[list[dict[str, Any]]], list[Path]] | None"] = None  # a batch's names of files
    fixed_names: ClassVar[bool] = False  # whether no name may count on: a rerun of a batch must find the files
    figure: ClassVar[bool] = False  # whether a sheet is written beside; where there is one, it is a flag

    out: Path = DEFAULT
    """The file to write (.png, .jpg, .webp). The default name counts on where it is taken. A picture that jaxpa made is
    replaced, and the command says so; any other file needs --force. The names of several pictures say what they differ
    in."""
    force: bool = False
    """Replace files that were not made by jaxpa, and run what does not seem to fit in memory."""
    keep_paths: bool = False
    """Record the full paths of the input files in the pictures, instead of their base names."""
    mesh: str | None = None
    """Spread the work over all devices, such as data=2,model=4: the pictures of a batch over 2, the networks over 4."""

    def load(self, mesh: str | None = None) -> "Pipeline":
        return super().load(self.mesh if mesh is None else mesh)

    def prepare(self) -> Any:
        """Refuse what can be refused before anything loads, and read the inputs, once, for `make`."""
        raise NotImplementedError

    def make(self, prepared: Any) -> Made:
        """Make and write the pictures."""
        raise NotImplementedError

    def inputs(self) -> list[Path]:
        """The files that it reads."""
        raise NotImplementedError

    def made_by(self) -> dict[str, Any]:
        """What stands in every picture: versions, device and checkpoint."""
        from jaxpa.checkpoint.load import default_dtype
        from jaxpa.request.provenance import networks_of, versions

        dtype = self.dtype or np.dtype(default_dtype()).name
        return versions() | {"checkpoint": networks_of(self.checkpoint, self.source(), dtype, self.keep_paths)}

    def require_memory(self, request: Request, canvas: tuple[int, int] | None, beside: int = 0) -> dict[str, Any]:
        """What a request costs. Raises JaxpaError, unless forced, where it does not fit in memory with `beside` bytes.

        canvas: (height, width), if a picture decides it.
        """
        from jaxpa.devices.plan import plan, require_memory

        said = self.checkpoint
        costs = plan(self.source(), request, self.dtype, canvas, said.weights, said.keep_resident)
        if not self.force:
            require_memory(costs | {"memory_bytes": costs["memory_bytes"] + beside})
        return costs

    def outputs(self) -> Outputs:
        """The files that it writes where it is told their names."""
        return self.outputs_of(self.made_with())

    def made_with(self) -> list[dict[str, Any]]:
        """What each picture is made with, as far as that differs."""
        return [{}]

    def outputs_of(self, made: list[dict[str, Any]]) -> Outputs:
        if self.naming is not None:
            return files.named(self.naming(made), files.labels(made), self.sheet_wanted)
        return files.outputs(self.out, files.labels(made), self.sheet_wanted)

    @property
    def sheet_wanted(self) -> bool:
        return self.figure

    def settle(self, made: list[dict[str, Any]]) -> Outputs:
        files.check_labels(files.labels(made))
        if self.counts_on:
            return files.free(self.out, files.labels(made), self.sheet_wanted)
        return files.settle(self.outputs_of(made), self.inputs(), self.force)

    @property
    def counts_on(self) -> bool:
        """Whether its files have the default name, and count on where that is taken."""
        return self.naming is None and self.out == self.DEFAULT

    def save(
        self,
        outputs: Outputs,
        made: list[dict[str, Any]],
        pictures: Iterable[Recorded],
        sheet: Callable[[], Recorded],
    ) -> Outputs:
        """Write the pictures, each with its record, and the sheet if it is wanted; the files that they are in."""
        if self.counts_on:  # another command may have taken the default name by now
            outputs = self.settle(made)
        ours = outputs.replaced
        figure = None if outputs.figure is None else self._save(outputs.figure, *sheet(), ours)
        written = [self._save(file, *each, ours) for file, each in zip(outputs.files, pictures, strict=True)]
        replaced = tuple(file for file in ours if file in (figure, *written))
        return Outputs(written, figure, replaced)

    def _save(self, file: Path, image: "Image.Image", record: dict[str, Any], ours: Sequence[Path]) -> Path:
        """Write a picture, and say where; ours: files that may be replaced. Others are kept, even if they have come
        since: the name counts on, or, where it is fixed, OutputError is raised."""
        from jaxpa.media.images import is_recorded, save_image

        fresh = self.counts_on or not (self.force or (file in ours and is_recorded(file)))
        for name in [file] if self.fixed_names else files.counting_on(file):
            with suppress(FileExistsError):
                save_image(image, name, record, fresh=fresh)
                if name != file and not self.counts_on:
                    console.LOG.warning("%s has come while this ran, and is kept: ours is %s", file, name)
                return name
        raise OutputError(f"{file} has come while this ran, and is kept: move it away, or name another --out")

    def run(self) -> int:
        made = self.make(self.prepare())
        if made is not ELSEWHERE:
            console.report(self.json, made.content, [made.line])
        return 0


def report_of(outputs: Outputs, content: dict[str, Any], clock: "Clock | None" = None) -> Made:
    """What was written and how long it took: for --json, and in a line."""
    said: dict[str, Any] = {
        "files": [str(file) for file in outputs.files],
        "replaced": [str(file) for file in outputs.replaced],
    }
    said["figure"] = None if outputs.figure is None else str(outputs.figure)
    line = f"{', '.join(map(str, outputs.files))}"
    line += " (replaced)" if outputs.replaced else ""
    if clock is None:
        return Made({**said, **content}, line)
    spent = {
        "seconds": {name: round(value, 3) for name, value in clock.seconds.items()},
        "compile_seconds": round(clock.compile_seconds, 3),
        "programs": clock.programs,
        "cached_programs": clock.cached,
    }
    total = ", ".join(f"{name} {value:.1f} s" for name, value in clock.seconds.items())
    return Made({**said, **content, **spent}, f"{line}: {total}, of which compiling {clock.compile_seconds:.1f} s")
