"""Pieces of Markdown, of any text."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence

# Within a word an underscore means nothing, so ids stay as they are.
_SPECIAL = re.compile(r"[\\`*\[\]<>|$]|(?<!\w)[_~]|[_~](?!\w)")


def escape(text: str) -> str:
    """Text that shows as it is, on one line."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))


def link(text: str, address: str) -> str:
    return f"[{escape(text)}]({address})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Container[int] = ()) -> str:
    """Cells are Markdown already; the columns of these numbers are set flush right."""
    lines = ["---:" if column in right else "---" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, lines, *rows))


def code(text: str, language: str) -> str:
    """A block of code, fenced by more backticks than it holds in a row."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
