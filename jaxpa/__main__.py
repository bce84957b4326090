"""`python -m jaxpa`, and what the `jaxpa` command runs."""

import sys


def run() -> int:
    """Run the command that was typed; its exit status."""
    try:
        from jaxpa.cli.main import main  # here: an interruption while it is imported is not a fault either
    except KeyboardInterrupt:
        print("jaxpa: stopped", file=sys.stderr)
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(run())
