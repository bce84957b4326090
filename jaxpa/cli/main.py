"""FLUX.1 and Personalize Anything in JAX. `jaxpa COMMAND --help` explains each command.

Bad input ends in one line on stderr and status 2.
"""

import io
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tyro
from tyro.conf import Positional

from jaxpa.cli import console
from jaxpa.cli.app import AppCommand
from jaxpa.cli.batch import BatchCommand
from jaxpa.cli.bench import BenchCommand
from jaxpa.cli.checkpoints import ConvertCommand, InfoCommand
from jaxpa.cli.command import Command, check_platform, headers_read_once
from jaxpa.cli.flags import REGISTRY
from jaxpa.cli.lines import JOBS
from jaxpa.cli.parse import join_lines, parse_command
from jaxpa.cli.plan import PlanCommand
from jaxpa.cli.replay import ReplayCommand
from jaxpa.cli.signals import BROKEN_PIPE, INTERRUPTED, TERMINATED, Terminated, at_sigterm
from jaxpa.errors import JaxpaError, did_you_mean, memory_is_full


@dataclass(kw_only=True)
class CompletionCommand:
    """Print a script that lets a shell complete the words of `jaxpa`. For bash, in ~/.bashrc: source <(jaxpa completion
    bash). For zsh, into a folder of $fpath, as _jaxpa; for fish, into ~/.config/fish/completions, as jaxpa.fish."""

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """The shell."""

    def run(self) -> int:
        for kind in COMMANDS.values():
            join_lines(kind)  # a line is a word that completes
        try:
            every(["--tyro-print-completion", self.shell])
        except SystemExit as ended:
            return 0 if ended.code in (None, 0) else 1
        return 0


COMMANDS = {
    **JOBS,
    "batch": BatchCommand,
    "replay": ReplayCommand,
    "app": AppCommand,
    "plan": PlanCommand,
    "convert": ConvertCommand,
    "bench": BenchCommand,
    "info": InfoCommand,
    "completion": CompletionCommand,
}
NARROWEST = 20  # columns of help


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without Unicode is no reason to fail
    with console.talking():
        try:
            with at_sigterm():
                return answer(argv)
        except BrokenPipeError:  # whoever reads has seen enough, as `head` has; nothing more may be flushed into it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except JaxpaError as error:
            console.LOG.error("%s", error)
            return 2
        except OSError as error:
            said = error.strerror or error
            console.LOG.error("%s", said if error.filename is None else f"{error.filename}: {said}")
            return 2
        except KeyboardInterrupt:
            console.LOG.error("stopped")
            return INTERRUPTED
        except Terminated:
            console.LOG.error("terminated")
            return TERMINATED
        except (RuntimeError, MemoryError) as error:
            if not memory_is_full(error):
                raise
            said = " ".join(str(error).split())[:200]
            console.LOG.error("the memory is full (%s): make fewer pictures at once, or smaller ones", said)
            return 2


def answer(argv: Sequence[str]) -> int:
    """Run the command that the words are; its exit status."""
    _check_folder()
    _widen()
    if argv[:1] == ["--version"]:
        print(version())
        return 0
    command = read(argv)
    console.hush(getattr(command, "quiet", False))
    if isinstance(command, Command):
        command.begin()
    if isinstance(command, Command | ReplayCommand):
        check_platform()
    with headers_read_once():
        status = command.run()
    if sys.stdout is not None:  # as it is where the shell has closed it
        sys.stdout.flush()
    return status


def read(argv: Sequence[str]) -> Any:
    """The command that the words are."""
    if argv and argv[0] in COMMANDS:
        return parse_command(COMMANDS[argv[0]], argv[0], argv[1:], f"jaxpa {argv[0]}")
    if argv and not argv[0].startswith("-"):
        raise JaxpaError(f"there is no command {argv[0]!r}{did_you_mean(argv[0], COMMANDS)}")
    return every(argv)


def every(argv: Sequence[str]) -> Any:
    """What the words are, among all commands: help, and whatever else belongs to no single one of them."""
    about = (__doc__ or "").partition("\n")[0]
    return tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="jaxpa", description=about, args=argv, registry=REGISTRY)


def _widen() -> None:
    """Lay help out for `NARROWEST` columns where the terminal has fewer: in one column, its library would not end."""
    if 0 < shutil.get_terminal_size().columns < NARROWEST:
        os.environ["COLUMNS"] = str(NARROWEST)


def _check_folder() -> None:
    """Raise JaxpaError where the working directory is gone: libraries ask for it while they are imported."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise JaxpaError("the working directory has been removed: change to another one") from None


def version() -> str:
    """This package's and its parts'."""
    import platform
    from importlib import metadata

    def of(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    return f"jaxpa {of('jaxpa')}, jax {of('jax')}, flax {of('flax')}, Python {platform.python_version()}"
