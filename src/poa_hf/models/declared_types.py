"""Values of a recipe in the types that a configuration class declares for its fields."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin

_NOUNS: dict[Any, tuple[str, str]] = {
    float: ("a number", "numbers, such as 0.5 1.0"),
    int: ("a whole number", "whole numbers, such as 32 64"),
    bool: ("true or false", "words, each true or false"),
    str: ("a text", "words"),
}
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def as_declared(config_class: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields in the types of a configuration class.

    Numbers and flags may be written as text, such as `1e-3` and `yes`, and lists as `32`, `32 64` or `32,64`.

    Raises:
        ValueError: If a value is not of its field's type.
    """
    types = {each.name: each.type for each in dataclasses.fields(config_class)}
    return {name: _read(name, value, types.get(name)) for name, value in fields.items()}


def as_numbers(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields with numbers that are written as text, such as `"1e-5"`, as numbers."""
    return {key: _number(value) for key, value in fields.items()}


def _read(name: str, value: Any, declared: Any) -> Any:
    is_union = isinstance(declared, UnionType) or get_origin(declared) is Union
    options = get_args(declared) if is_union else (declared,)
    if not all(isinstance(get_origin(each) or each, type) for each in options):  # the name of a type, or Any
        return value
    scalars = {each for each in options if each in _NOUNS}
    entries = {kind for each in options if get_origin(each) in (list, tuple) for kind in get_args(each)} - {...}
    if value is None and type(None) not in options:
        raise ValueError(f"{name} is null: give it a value, or leave it out for the default.")
    if value is None or not (scalars or entries):
        return value
    nouns = next(nouns for kind, nouns in _NOUNS.items() if kind in (scalars or entries))
    items = _items(value, or_one=not scalars) if entries else None
    read = _scalar(value, scalars) if items is None else [_scalar(item, entries) for item in items]
    if read is None or (items is not None and None in read):
        text = repr(value)
        shown = text if len(text) <= 60 else f"{text[:60]}..."
        raise ValueError(f"{name} is {shown}: give {nouns[0 if items is None else 1]}.")
    return read


def _items(value: Any, or_one: bool) -> list[Any] | None:
    """The entries of a list, also of one that is written as text; a single value is a list only with `or_one`."""
    if isinstance(value, list | tuple):
        return list(value)
    words = (
        [word for word in re.split(r"[\s,]+", value.strip("[] \t\n")) if word] if isinstance(value, str) else [value]
    )
    return words if or_one or len(words) > 1 else None


def _scalar(value: Any, kinds: set[Any]) -> Any:
    """A value as one of the kinds; None if it is of none of them."""
    if isinstance(value, list | tuple | dict) or value is None:
        return None
    if bool in kinds and isinstance(value, bool | str):
        return value if isinstance(value, bool) else _FLAGS.get(value.lower())
    if str in kinds:
        return str(value).lower() if isinstance(value, bool) else str(value)
    number = _number(value)
    if isinstance(number, bool | str) or not kinds & {int, float}:
        return None
    if float in kinds and (isinstance(number, float) or int not in kinds):
        return float(number)
    return int(number) if math.isfinite(number) and int(number) == number else None


def _number(value: Any) -> Any:
    """A number that is written as text; anything else as it is."""
    if isinstance(value, float):
        return float(value)  # without the text that it may have been read from
    if not isinstance(value, str):
        return value
    try:
        return int(value) if re.fullmatch(r"[+-]?\d{1,18}", value) else float(value)
    except ValueError:
        return value
