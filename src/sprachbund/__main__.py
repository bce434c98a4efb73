"""`python -m sprachbund` is the command `sprachbund`."""

import sys

from sprachbund.cli import main

if __name__ == "__main__":
    sys.exit(main())
