"""Text for messages: errors on one line, suggestions for misspelt names, quantities and durations."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable

_UNUSUAL = re.compile("[^\n\t\x20-\x7e]")
_FACTORS = {"t": 1e12, "g": 1e9, "b": 1e9, "m": 1e6, "k": 1e3, "": 1}
_UNITS = {"T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3}


def one_line(error: object, limit: int = 300) -> str:
    """The text of an error on a single line, without a final full stop, cut to `limit` characters.

    An error without text is named by its type.

    >>> one_line(ValueError("first\\n  second."))
    'first second'
    """
    return " ".join(str(error).split())[:limit].rstrip(".") or type(error).__name__


def printable(text: str) -> str:
    """Text in which signs that a terminal obeys or hides, such as escape codes, are written as Python writes them.

    Names in a stranger's files could otherwise change what a terminal shows. Line feeds and tabs stay.

    >>> print(printable("vit\\x1b[2J"))
    vit\\x1b[2J
    """
    return _UNUSUAL.sub(
        lambda match: match[0] if match[0].isprintable() else match[0].encode("unicode_escape").decode(), text
    )


def shown_name(name: object) -> str:
    """Text of a name within a sentence, in quotes if it is empty or has signs that are not printed.

    >>> print(shown_name("seed"), shown_name("\\n"))
    seed '\\n'
    """
    text = str(name)
    return text if text.strip() and text.isprintable() else repr(text)


def capitalised(text: str) -> str:
    """Text with a capital first letter, as at the beginning of a sentence; the rest stays as it is.

    >>> capitalised("linear probe accuracy on ImageNet")
    'Linear probe accuracy on ImageNet'
    """
    return text[:1].upper() + text[1:]


def listed(values: Iterable[object], at_most: int = 16) -> str:
    """Values separated by commas; of more than `at_most`, the first three and the last.

    >>> listed(range(100), at_most=4)
    '0, 1, 2, ..., 99'
    """
    texts = [str(value) for value in values]
    return ", ".join(texts) if len(texts) <= at_most else f"{', '.join(texts[:3])}, ..., {texts[-1]}"


def enumerated(values: Iterable[object]) -> str:
    """Values as a sentence lists them.

    >>> enumerated("abc"), enumerated(["a", "b"])
    ('a, b and c', 'a and b')
    """
    *texts, last = map(str, values)
    return f"{', '.join(texts)} and {last}" if texts else last


# names that a sentence may list
MOST_NAMES = 60


def suggest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Say what to write instead of an unknown name: the nearest known names or, when none is near, all that exist if
    they are not too many.

    The result is the end of a sentence.

    Args:
        name: What was written.
        known: The names that exist.
        prefix: Put before each near name, and before the names of a whole list if it begins with `-`.

    >>> suggest("max_step", ["max_steps", "seed"], "--")
    'did you mean --max_steps?'
    >>> suggest("colour", ["max_steps", "seed"])
    'choose from max_steps, seed.'
    """
    known = sorted(known)
    if near := _near(name, known):
        return f"did you mean {' or '.join(prefix + each for each in near)}?"
    prefix = prefix if prefix.startswith("-") else ""
    if len(known) > MOST_NAMES:
        return f"none of the {len(known)} that exist is spelt alike (--help, or the documentation, lists them)."
    return f"choose from {', '.join(prefix + each for each in known)}."


def _near(name: str, known: list[str]) -> list[str]:
    """Return the known names that are spelt much like a name or else the shortest that have all of its words."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.77)
    if near:
        # a second name is worth reading only if it is almost as near as the first
        likeness = {each: difflib.SequenceMatcher(None, each, name).ratio() for each in near}
        return [each for each in near if likeness[each] >= max(likeness.values()) - 0.05]
    words = _words(name)
    containing = [each for each in known if words and words <= _words(each)]
    fewest = min((len(_words(each)) for each in containing), default=0)
    shortest = [each for each in containing if len(_words(each)) == fewest]
    return shortest if len(shortest) <= 3 else []


def _words(name: str) -> set[str]:
    return {word for word in re.split(r"[_\W]+", name.lower()) if word}


def format_quantity(value: float) -> str:
    """A number with three digits and a unit of thousands.

    >>> format_quantity(21_665_000)
    '21.7M'
    """
    # 999.5 and more are rounded up to the next unit
    letter, unit = next(((letter, unit) for letter, unit in _UNITS.items() if value >= 0.9995 * unit), ("", 1))
    return f"{value / unit:.3g}{letter}"


def parse_quantity(value: float | str, name: str = "A limit") -> float:
    """Return a positive number, given as a number or as text such as `30M`, `1.5e9` or `4`.

    Args:
        value: The number or text.
        name: What an error calls it.

    Raises:
        ValueError: If it is not a positive number.

    Example:
        >>> parse_quantity("1.5G")
        1500000000.0
    """
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(-?\d*\.?\d+(?:e[+-]?\d+)?)\s*([a-z]*)\s*", value.lower())
        if match is None or match[2] not in _FACTORS:
            raise ValueError(f"{name} {value!r} is not understood: write a number such as 4, 30M or 5G (K, M, G, T).")
        value = float(match[1]) * _FACTORS[match[2]]
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, not {value:g}.")
    return float(value)


def format_bytes(count: float) -> str:
    """A number of bytes with three digits and a unit.

    >>> format_bytes(86_600_000)
    '86.6 MB'
    """
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def format_duration(seconds: float) -> str:
    """Seconds as a reader would say them.

    >>> format_duration(5400)
    '1 h 30 min'
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if minutes else f"{hours:,} h"
