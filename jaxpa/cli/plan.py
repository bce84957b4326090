"""The command that says what a run would cost."""

from dataclasses import dataclass, field

from tyro.conf import OmitArgPrefixes

from jaxpa.cli import console
from jaxpa.cli.command import Command
from jaxpa.errors import whole
from jaxpa.media.subjects import MAX_REFERENCES, Subject
from jaxpa.request.groups import Method, Sampling
from jaxpa.request.request import Request


@dataclass(kw_only=True)
class PlanCommand(Command):
    """Say what a run would cost, before anything loads: memory, sample-forwards, FLOPs, cached programs."""

    references: int = 1
    """Subjects, and a scene; 0: plain generation."""
    sampling: OmitArgPrefixes[Sampling] = field(default_factory=Sampling)
    method: OmitArgPrefixes[Method] = field(default_factory=Method)

    def request(self) -> Request:
        count = whole("references", self.references, 0, MAX_REFERENCES)
        subjects = (Subject("a reference"),) * count
        return Request(sampling=self.sampling, method=self.method, subjects=subjects)

    def run(self) -> int:
        from jaxpa.cli.command import spec_of
        from jaxpa.devices.plan import format_plan, plan, signature, was_compiled

        source, request = self.source(), self.request()
        request.check(spec_of(source))
        content = plan(source, request, self.dtype)
        content["compiled"] = was_compiled(console.compilation_cache(), signature(source, request, content))
        if self.json:
            console.report(True, content, ())
        else:
            print(format_plan(content))
        return 0
