"""Ranges of numbers, which fields and options declare: checked in one place, shown in help, used in messages."""

from __future__ import annotations

import dataclasses
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any

_LARGEST_WHOLE = 2**31 - 1  # of a 32-bit integer, which some of the libraries below use
_LARGEST = 3.4e38  # of float32


@dataclass(frozen=True)
class Range:
    """The numbers that a field takes, all of them finite.

    Attributes:
        low: The least number; None for none.
        high: The greatest number; None for the largest that the type of the field holds.
        above: Whether `low` itself does not belong to the range.
        below: Whether `high` itself does not belong to the range.
        whole: Whether only whole numbers do.

    Example:
        >>> print(Range(0, 1, below=True))
        a number of at least 0 and below 1
        >>> 0.5 in Range(0, 1), float("nan") in Range(0), True in Range(0)
        (True, False, False)
    """

    low: float | None = None
    high: float | None = None
    above: bool = False
    below: bool = False
    whole: bool = False

    @property
    def largest(self) -> float:
        """The greatest number, `high` or that of the type."""
        if self.high is not None:
            return self.high
        return _LARGEST_WHOLE if self.whole else _LARGEST

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, Integral if self.whole else Real) or isinstance(value, bool):
            return False
        number: Any = value
        low = -_LARGEST if self.low is None else self.low
        high = self.largest
        return bool(
            (low < number if self.above else low <= number) and (number < high if self.below else number <= high)
        )

    @property
    def bounds(self) -> str:
        """The bounds in words, such as `above 0`; empty if there are none."""
        parts = []
        if self.low is not None:
            parts.append(f"{'above' if self.above else 'at least'} {self._text(self.low)}")
        if self.high is not None:
            parts.append(f"{'below' if self.below else 'at most'} {self._text(self.high)}")
        return " and ".join(parts)

    def _text(self, number: float) -> str:
        return f"{int(number):,}" if self.whole else f"{number:g}"

    def __str__(self) -> str:
        return self.described()

    def described(self, several: bool = False) -> str:
        """Return which numbers belong to the range, as a noun."""
        noun = ("whole numbers" if self.whole else "numbers") if several else f"a {'whole ' * self.whole}number"
        bounds = f"of {self.bounds}" if self.bounds.startswith("at") else self.bounds
        if self.low is None:  # with a bound or without, infinity and NaN are no numbers of any range
            noun = noun.replace("number", "finite number")
        return f"{noun} {bounds}".rstrip()


COUNT = Range(1, whole=True)
WHOLE = Range(0, whole=True)
POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
SEED = Range(0, 2**32 - 1, whole=True)
SHARE = Range(0, 1)
SHARE_BELOW_1 = Range(0, 1, below=True)
FINITE = Range()


def check_number(name: str, value: Any, allowed: Range) -> None:
    """Raise a ValueError unless a number, or each number of a list, is in a range.

    Args:
        name: The name of the field, for the message.
        value: The number or the list, which may not be empty.
        allowed: The range.
    """
    several = isinstance(value, list | tuple)
    values = list(value) if several else [value]
    if values and all(each in allowed for each in values):
        return
    text = repr(list(value)) if several else repr(value) if isinstance(value, str) else str(value)
    text = text if len(text) <= 60 else f"{text[:60]}..."
    sentence = f"{name} is {text}: give {allowed.described(several)}"
    numbers: list[Any] = [each for each in values if isinstance(each, Real)]
    if allowed.high is None and any(each > allowed.largest for each in numbers):
        sentence += f", no larger than {allowed._text(allowed.largest)}"
    raise ValueError(f"{sentence}.")


def check_ranges(values: object, ranges: Mapping[str, Range]) -> None:
    """Raise a ValueError unless each of these attributes is in its range; None is left to the attribute's type."""
    for name, allowed in ranges.items():
        if (value := getattr(values, name)) is not None:
            check_number(name, value, allowed)


def declared_ranges(arguments: type) -> dict[str, Range]:
    """Return the ranges that a class declares for its fields, in its attribute `ranges`."""
    ranges: dict[str, Range] = getattr(arguments, "ranges", {})
    return ranges


def plain(value: Any) -> Any:
    """Return a number or a path, or those in a list or dictionary, as Python's own; anything else as it is."""
    if isinstance(value, dict):
        found = [*map(plain, value.values())]
        return value if all(map(operator.is_, found, value.values())) else dict(zip(value, found, strict=True))
    if isinstance(value, list | tuple):
        found = [*map(plain, value)]
        return value if all(map(operator.is_, found, value)) else type(value)(found)
    if isinstance(value, PurePath):
        return str(value)
    if not isinstance(value, Real) or type(value) in (bool, int, float):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def check_fields(arguments: Any) -> None:
    """Raise a ValueError unless the fields of a dataclass are of their types and in the ranges that they declare.

    Numbers of other libraries, such as NumPy's, become Python's, and paths become text, so that files can hold them.
    """
    for field in dataclasses.fields(arguments):
        given, kind = getattr(arguments, field.name), str(field.type)
        value = plain(given)
        if value is not given:
            setattr(arguments, field.name, value)
        # HfArgumentParser takes "| None" out of the types of fields
        if value is None and "None" not in kind and field.default is not None:
            raise ValueError(f"{field.name} is None: give it a value, or leave it out for the default.")
        if kind == "bool" and not isinstance(value, bool):
            raise ValueError(f"{field.name} is {value!r}: give true or false.")
        if kind.startswith("list[") and value is not None and not isinstance(value, list | tuple):
            raise ValueError(f"{field.name} is {value!r}: give a list.")
        if isinstance(value, list | tuple) and not re.search(r"\b(list|tuple|Sequence|Any)\b", kind):
            raise ValueError(f"{field.name} is {value!r}: give one value, not a list.")
    check_ranges(arguments, declared_ranges(type(arguments)))


def check_given(arguments: Any) -> None:
    """Raise a ValueError for a field of a dataclass with an empty text or list, as of a shell's variable without value.

    Such a field would otherwise mean what it means when it is left out, or something else that nobody has asked for.
    """
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        if _is_empty(value) or isinstance(value, list | tuple) and any(map(_is_empty, value)):
            raise ValueError(f"{field.name} is {value!r}: give it a value, or leave it out.")


def _is_empty(value: Any) -> bool:
    return value in ([], ()) or isinstance(value, str) and not value.strip()
