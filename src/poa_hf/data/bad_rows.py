"""Rows whose images cannot be decoded: each is named once, and many are only counted."""

from __future__ import annotations

import logging
from collections.abc import Iterable

logger = logging.getLogger(__name__)

NAMED_BAD_ROWS = 20  # bad rows named in the log; further ones are only counted


class BadRows:
    """Warns of each bad row once; after `NAMED_BAD_ROWS` rows, only of their number.

    Args:
        known: Names of rows that an earlier part of the run has warned of.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self.names = set(known)

    def __len__(self) -> int:
        return len(self.names)

    def warn_of(self, name: str, reason: str) -> bool:
        """Warn of a row, and return True, unless it is known."""
        if name in self.names:
            return False
        self.names.add(name)
        if len(self) <= NAMED_BAD_ROWS:
            logger.warning("Image %s could not be decoded and was replaced by another one: %s.", name, reason)
        elif len(self) % 100 == 0:
            logger.warning("%d images could not be decoded so far and were replaced by others.", len(self))
        return True
