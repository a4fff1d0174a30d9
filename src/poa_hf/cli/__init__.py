"""The command `poa`: each sub-command is a few calls of the library."""

from .main import main, pretrain, run

__all__ = ["main", "pretrain", "run"]
