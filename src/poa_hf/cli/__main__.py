"""Lets `python -m poa_hf.cli` stand in for `poa`."""

import sys

from .main import main

sys.exit(main())
