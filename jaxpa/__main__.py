"""`python -m jaxpa` is the `jaxpa` command."""

import sys

from jaxpa.cli import main

sys.exit(main())
