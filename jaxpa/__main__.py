"""`python -m jaxpa`, and what the `jaxpa` command runs."""

import os
import sys


def run() -> int:
    """Run the command that was typed; its exit status."""
    _fill_closed_streams()
    try:
        from jaxpa.cli.main import main  # here: an interruption while it is imported is not a fault either
    except KeyboardInterrupt:
        print("jaxpa: stopped", file=sys.stderr)
        return 130
    except ValueError as error:
        if not _names_a_variable(error):
            raise
        print(f"jaxpa: {error}", file=sys.stderr)
        return 2
    return main()


def _names_a_variable(error: ValueError) -> bool:
    """Whether it is about a variable of the environment; JAX reads its own while it is imported."""
    return any(name.startswith("JAX_") and name in str(error) for name in os.environ)


def _fill_closed_streams() -> None:
    """Let a standard stream that the caller has closed lead nowhere.

    Else the next file that is opened takes its number, and what is printed goes into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115


if __name__ == "__main__":
    sys.exit(run())
