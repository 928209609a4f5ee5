"""`python -m difftool`."""

import sys

from difftool.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
