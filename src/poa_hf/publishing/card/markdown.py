"""Building blocks of Markdown from any text."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from urllib.parse import quote

from ...formatting import printable

# Markdown ignores underscores within words, so ids are not escaped.
_SPECIAL = re.compile(r"[\\`*\[\]<>|$]|(?<!\w)[_~]|[_~](?!\w)")


_LONGEST = 1000
_IN_ADDRESSES = "!#$%&'*+,/:;=?@[]~"  # what addresses may hold as it is, except brackets that end a link


def escape(text: str) -> str:
    """Escape a text so that Markdown shows it literally, on one line.

    >>> print(escape("*my* photos_2"))
    \\*my\\* photos_2
    """
    return _SPECIAL.sub(r"\\\g<0>", printable(" ".join(text.split()))[:_LONGEST])


def link(text: str, address: str) -> str:
    """Return a link with any text; signs that would end the address are written in its own way."""
    return f"[{escape(text)}]({quote(address, safe=_IN_ADDRESSES)})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Container[int] = ()) -> str:
    """Return a table of cells that are Markdown already.

    Args:
        head: The titles of the columns.
        rows: The cells of each row.
        right: The indices of the columns that are aligned right.
    """
    rules = ["---:" if column in right else "---" for column in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rules, *rows))


def code(text: str, language: str) -> str:
    """Return a block of code, fenced by more backticks than the text holds in a row."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
