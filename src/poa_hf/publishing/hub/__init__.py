"""What publishing asks of the Hub, and how it tries again."""

from ..._moved import moved_names

__getattr__ = moved_names(__name__)
