"""Model cards: facts of a run as Markdown and metadata for the Hub."""

from ..._moved import moved_names

__getattr__ = moved_names(__name__)
