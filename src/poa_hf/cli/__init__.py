"""The command `poa`: each sub-command reads its arguments, calls the library and prints what came of it."""

from .main import main, run
from .pretrain import pretrain

__all__ = ["main", "pretrain", "run"]
