"""The command `poa`: each sub-command reads its arguments, calls the library and prints the result."""

from .main import main, run
from .pretrain import pretrain

__all__ = ["main", "pretrain", "run"]
