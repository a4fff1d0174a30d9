"""Run `poa` by `python -m poa_hf`."""

import sys

from .cli.main import main

if __name__ == "__main__":
    sys.exit(main())
