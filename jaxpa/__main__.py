"""`python -m jaxpa` is the `jaxpa` command."""

import sys

from jaxpa.cli.main import main

sys.exit(main())
