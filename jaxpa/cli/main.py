"""FLUX.1 and Personalize Anything in JAX. `jaxpa COMMAND --help` explains each command.

Bad input ends in one line on stderr and status 2.
"""

import sys
from collections.abc import Sequence
from typing import Any

import tyro

from jaxpa.cli import console
from jaxpa.cli.batch import JOBS, Batch
from jaxpa.cli.tools import Bench, Convert, Info, Plan
from jaxpa.errors import JaxpaError

COMMANDS = {
    **JOBS,
    "batch": Batch,
    "plan": Plan,
    "convert": Convert,
    "bench": Bench,
    "info": Info,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        command: Any = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="jaxpa", description=(__doc__ or "").partition("\n")[0], args=console.group_subjects(argv)
        )
        with console.one_line_warnings():
            return command.run()
    except JaxpaError as error:
        print(f"jaxpa: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxpa: stopped", file=sys.stderr)
        return 130
