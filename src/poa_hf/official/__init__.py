"""The authors' checkpoints: their names, files and sizes, and their conversion."""

from .._moved import moved_names

__getattr__ = moved_names(__name__)
