"""`python -m nmsolve`: the command line."""

import sys

from nmsolve.cli import main

if __name__ == "__main__":
    sys.exit(main())
