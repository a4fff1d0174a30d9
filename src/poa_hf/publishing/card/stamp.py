"""The stamp at the end of a published card, by which a later push can tell whether anyone has edited the card."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_STAMP = re.compile(r"\n<!-- poa push ([0-9a-f]{32}) [0-9a-f]{32} -->\n$")


def add_stamp(card: Path, picture_data: str) -> None:
    """Append a comment with two hashes to a card: one of its text, and one of the data that its picture shows.

    The second hash changes with the picture. The bytes of pictures cannot be compared, because versions of matplotlib
    encode the same points differently.
    """
    text = card.read_text(encoding="utf-8")
    stamp = f"<!-- poa push {_digest(text)} {_digest(picture_data)} -->"
    card.write_text(f"{text}\n{stamp}\n", encoding="utf-8", newline="\n")


def is_unedited(card: bytes) -> bool:
    """Return whether a card has not been edited since `poa push` wrote it."""
    text = card.decode("utf-8", errors="replace")
    stamp = _STAMP.search(text)
    return stamp is not None and _digest(text[: stamp.start()]) == stamp[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
