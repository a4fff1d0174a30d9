"""Formats in which an extracted size can be written."""

from ..._moved import moved_names

__getattr__ = moved_names(__name__)
