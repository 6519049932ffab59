"""`python -m qlab` is the command `qlab`."""

import sys

from qlab.cli import main

sys.exit(main())
