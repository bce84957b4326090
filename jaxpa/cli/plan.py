"""The command that says what a run would cost, here or on a device that is not here."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import OmitArgPrefixes

from jaxpa.backbones.variants import Reads
from jaxpa.cli import console
from jaxpa.cli.command import OF_FILES, Command
from jaxpa.errors import whole
from jaxpa.media.subjects import MAX_REFERENCES, Subject
from jaxpa.request.groups import Editing, Following, Method, Sampling
from jaxpa.request.request import Request

if TYPE_CHECKING:
    from jaxpa.checkpoint.source import Source


@dataclass(kw_only=True)
class Compiling:
    """For which device the program is compiled. Compiled, not run: no such device is needed."""

    device: str | None = None
    """v5e-1, v5e-8, v5p-8, v6e-1, v6e-4, h100, h100x8, ...: what its own compiler makes of the program."""
    mesh: str | None = None
    """How its chips are used, or the devices here: data=D,model=M. Default: the first that fits; one device here."""
    config: Literal["dev", "schnell"] | None = None
    """FLUX.1 at its full size, without any file, instead of --model."""


@dataclass(kw_only=True)
class PlanCommand(Command):
    """Say what a run would cost, before anything loads: memory, sample-forwards, FLOPs, cached programs."""

    references: int | None = None
    """Subjects, and a scene; 0: plain generation. Default: 1, or the picture that a sister model of FLUX.1 reads."""
    sampling: OmitArgPrefixes[Sampling] = field(default_factory=Sampling)
    method: OmitArgPrefixes[Method] = field(default_factory=Method)
    compiling: OmitArgPrefixes[Compiling] = field(default_factory=Compiling)

    def request(self, reads: Reads = "nothing") -> Request:
        """What is asked of a checkpoint that reads such a picture."""
        said: dict[str, Any] = {"sampling": self.sampling, "method": self.method}
        if reads == "control":
            said["following"] = Following(control="a control picture")
        if self.references is None and reads == "fill":
            return Request(**said, editing=Editing(image="a picture", mask="a mask"))
        if self.references is None and reads == "sequence":
            return Request(**said, following=Following(picture="a picture"))
        usual = 0 if reads == "control" else 1
        count = usual if self.references is None else whole("references", self.references, 0, MAX_REFERENCES)
        return Request(**said, subjects=(Subject("a reference"),) * count)

    def source(self, download: bool = False) -> "Source":
        from jaxpa.checkpoint.source import described

        config = self.compiling.config
        if config is None:
            return super().source(download)
        self.refuse(OF_FILES, "--config reads no files")
        return described(config)

    def run(self) -> int:
        from jaxpa.cli.command import spec_of
        from jaxpa.devices.elsewhere import elsewhere, format_elsewhere
        from jaxpa.devices.known import signature, was_compiled
        from jaxpa.devices.plan import format_plan, plan

        source = self.source()
        spec = spec_of(source)
        request = self.request(spec.variant.reads)
        request.check(spec)
        away = self.compiling.device
        said, dtype = self.checkpoint, self.dtype or (away and "bfloat16")
        content = plan(source, request, dtype, weights=said.weights, resident=said.keep_resident)
        if away:
            content |= elsewhere(source, request, content, away, self.compiling.mesh)
        else:
            name = signature(source, request, content, self.compiling.mesh)
            content["compiled"] = was_compiled(console.compilation_cache(), name)
        if self.json:
            console.report(True, content, ())
        else:
            print(format_plan(content) + (f"\n{format_elsewhere(content)}" if away else ""))
        return 0
