"""Where the files of a batch go to a URL: what lies there, and the lines that write there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jaxpa.checkpoint.remote import make_folder, open_url
from jaxpa.cli import files
from jaxpa.cli.command import Made
from jaxpa.cli.lines import Job
from jaxpa.errors import JaxpaError, OutputError


def existing(url: str) -> set[str]:
    """The names of the files below a URL. Raises JaxpaError."""
    system, path = open_url(url)
    root = path.rstrip("/") + "/"
    try:
        system.invalidate_cache()
        return {each.removeprefix(root) for each in system.find(path)} if system.exists(path) else set()
    except Exception as error:  # each file system has errors of its own
        raise JaxpaError(f"{url} cannot be read: {error}") from None


class AtUrl(NamedTuple):
    """A line whose files go to a URL, to be worked on. What lies there by their names is fetched first: it is replaced,
    or refused, as a file of this machine is. No local file stays behind a line that ends."""

    job: Job
    url: str

    def settle(self) -> None:
        """Raise JaxpaError for what lies there and may not be replaced."""
        command = self.job.command
        try:
            self.fetch()
            files.settle(command.outputs(), command.inputs(), command.force)
        finally:
            self.tidy()

    def prepare(self) -> Any:
        with self.tidied():
            self.fetch()
            return self.job.command.prepare()

    def make(self, prepared: Any) -> Made:
        with self.tidied():
            return self.sent(self.job.command.make(prepared))

    def finish(self, prepared: Any, pictures: Any, drawn: Any, pipe: Any) -> Made:
        command: Any = self.job.command
        with self.tidied():
            return self.sent(command.finish(prepared, pictures, drawn, pipe))

    @contextmanager
    def tidied(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.tidy()
            raise

    def tidy(self) -> None:
        for file in self.job.files:
            file.unlink(missing_ok=True)

    def fetch(self) -> None:
        """Raises OutputError."""
        system, targets = self.targets()
        try:
            for file, target in targets:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.unlink(missing_ok=True)  # of an attempt that was killed
                if system.exists(target):
                    system.get_file(target, str(file))
        except Exception as error:  # each file system has errors of its own
            raise OutputError(f"{self.url} cannot be read: {error}") from None

    def sent(self, made: Made) -> Made:
        """What was made, once its files are where they belong; their local ones go. Raises OutputError."""
        system, targets = self.targets()
        ours = set(made.content["replaced"])
        try:
            for file, target in targets:
                known = self.job.command.force or (str(file) in ours and _is_recorded(system, target, file))
                if not known and system.exists(target):
                    raise FileExistsError(f"{target} has come while this ran, and is kept: move it away")
                make_folder(system, target.rpartition("/")[0])
                system.pipe_file(target, file.read_bytes())
                file.unlink()
        except Exception as error:  # each file system has errors of its own
            raise OutputError(f"{self.url} cannot be written: {error}") from None
        return made

    def targets(self) -> tuple[Any, list[tuple[Path, str]]]:
        """The file system of the URL, and of each file where it goes."""
        system, path = open_url(self.url)
        system.invalidate_cache()
        root = path.rstrip("/")
        return system, [(file, f"{root}/{name}") for name, file in zip(self.job.names, self.job.files, strict=True)]


def _is_recorded(system: Any, target: str, file: Path) -> bool:
    """Whether what is there now was made by jaxpa; file: where it will be, beside which it is looked at."""
    from jaxpa.media.images import is_recorded

    beside = file.with_name(f".{file.name}")
    try:
        system.get_file(target, str(beside))
        return is_recorded(beside)
    except FileNotFoundError:
        return False
    finally:
        beside.unlink(missing_ok=True)
