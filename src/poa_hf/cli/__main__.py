"""Run `poa` by `python -m poa_hf.cli`."""

import sys

from .main import main

sys.exit(main())
