"""Dataclasses as options of a command and keys of a YAML file.

`transformers.HfArgumentParser` would do most of this, but importing it takes longer than a command's help may, and its
errors speak of itself rather than of the option.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from ..ranges import declared_ranges
from .parser import CommandParser, decimal_number, separate_words, whole_number, words

_TRUE, _FALSE, _NONE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}, {"none", "null"}


def add_fields(parser: CommandParser, arguments: type) -> None:
    """Add an option for each field of a dataclass, under the headings of its source (`headings`).

    Fields that are not given are absent from the parsed namespace.
    """
    groups: dict[str, Any] = {}
    titles = headings(arguments)
    for field in _by_class(arguments):
        title = titles[field.name]
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        reader = Reader.of(arguments, field.name)
        text = field.metadata.get("help", "")
        allowed = declared_ranges(arguments).get(field.name)
        bounds = allowed.bounds if allowed is not None else ""
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "type": reader.from_text, "metavar": reader.metavar}
        if reader.kind is bool or field.metadata.get("bare"):
            settings |= {"nargs": "?", "const": True if reader.kind is bool else field.metadata["bare"]}
        text = re.sub("%", "%%", text + _default_text(field, bounds))
        parser.add_option(
            f"--{field.name}",
            group=group,
            several=reader.is_list or reader.joined,
            separate=reader.separate,
            help=text,
            **settings,
        )
        if reader.kind is bool:
            parser.add_option(
                f"--no_{field.name}", group=group, dest=field.name, action="store_const", const=False,
                default=argparse.SUPPRESS, help=argparse.SUPPRESS,
            )  # fmt: skip


def headings(arguments: type) -> dict[str, str]:
    """Return the heading of each field: the comment above the group that it stands in, in the dataclass's source.

    Fields above the first comment have the first sentence of the class's documentation.
    """
    found: dict[str, str] = {}
    for each in reversed(arguments.__mro__[:-1]):
        title = (inspect.getdoc(each) or each.__name__).partition(".")[0].replace("\n", " ")
        try:
            lines = inspect.getsource(each).splitlines()
        except OSError:  # without its source, a class has one heading
            lines = []
        names = vars(each).get("__annotations__", {})
        found.update(dict.fromkeys(names, title))
        for line in lines:
            if comment := re.fullmatch(r"    # (\w.*)", line):
                title = comment[1]
            elif (match := re.match(r"    (\w+): ", line)) and match[1] in names:
                found[match[1]] = title
            elif line.startswith("    def "):
                break
    return found


def read_mapping_values(arguments: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a YAML file as the fields of a dataclass want them, for the keys that are its fields.

    Raises:
        ValueError: If a value does not fit its field.
    """
    names = {field.name for field in dataclasses.fields(arguments)}
    values = {}
    for name, value in content.items():
        if name in names:
            try:
                values[name] = Reader.of(arguments, name).from_value(value)
            except argparse.ArgumentTypeError as error:
                raise ValueError(f"{name} {error}.") from None
    return values


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the values of one field: text from a command line, or values from a YAML file.

    Attributes:
        kind: `bool`, `int`, `float` or `str`, of the value or of the entries of a list; `object` for a list of `Any`,
            whose entries may be mappings in a file.
        is_list: Whether the field holds a list.
        optional: Whether it may be None.
        joined: Whether it holds several names as one text, separated by commas.
        separate: Whether the entries of a list may hold spaces and commas, as names of files do.
    """

    kind: type
    is_list: bool = False
    optional: bool = False
    joined: bool = False
    separate: bool = False

    @classmethod
    def of(cls, arguments: type, name: str) -> Reader:
        """Return the reader of a field of a dataclass."""
        hint = get_type_hints(arguments)[name]
        options = get_args(hint) if type(None) in get_args(hint) else (hint,)
        (value,) = (each for each in options if each is not type(None))
        is_list = get_origin(value) is list
        field = next(each for each in dataclasses.fields(arguments) if each.name == name)
        joined, separate = bool(field.metadata.get("several")), bool(field.metadata.get("separate"))
        kind = get_args(value)[0] if is_list else value
        return cls(object if kind is Any else kind, is_list, len(options) > 1, joined, separate)

    @property
    def metavar(self) -> str:
        """The placeholder of the value in help."""
        name = {bool: "true|false", int: "N", float: "X", str: "TEXT", object: "TEXT"}[self.kind]
        if self.separate:
            return f"{name} ..."
        return f"{name},..." if self.is_list or self.joined else name

    def from_text(self, text: str) -> Any:
        """Read a value of the command line.

        Raises:
            ArgumentTypeError: If it does not fit; the message follows the option's name.
        """
        if self.optional and text.lower() in _NONE:
            return None
        if not self.is_list:
            return self._one(text)
        try:
            return [self._one(word) for word in (separate_words(text) if self.separate else words(text))]
        except argparse.ArgumentTypeError:
            raise argparse.ArgumentTypeError(f"is {text!r}: give {self._nouns()}") from None

    def from_value(self, value: Any) -> Any:
        """Read a value of a YAML file.

        Raises:
            ArgumentTypeError: If it does not fit; the message follows the field's name.
        """
        if value is None:
            if self.optional:
                return None
            raise argparse.ArgumentTypeError("is null: give it a value, or leave it out for the default")
        if isinstance(value, list | tuple) and self.is_list:
            if self.kind is object:
                return list(value)  # which the dataclass reads
            if any(isinstance(each, list | tuple | dict) or each is None for each in value):
                raise argparse.ArgumentTypeError(f"is {value!r}: give {self._nouns()}")
            return [self._one(_text(each)) for each in value]
        if isinstance(value, list) and self.joined:
            return ",".join(map(_text, value))
        if isinstance(value, list | tuple | dict):
            nouns = self._nouns() if self.is_list else _NOUNS[self.kind]
            raise argparse.ArgumentTypeError(f"is {value!r}: give {nouns}")
        text = _text(value)
        return self._one(text) if self.kind is str and not self.is_list else self.from_text(text)

    def _one(self, text: str) -> Any:
        return _READERS[self.kind](text)

    def _nouns(self) -> str:
        return {int: "whole numbers", float: "numbers"}.get(self.kind, "words") + ", such as " + _EXAMPLES[self.kind]


def _flag(text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise argparse.ArgumentTypeError(f"is {text!r}: give true or false")


_READERS: dict[type, Callable[[str], Any]] = {
    bool: _flag,
    int: whole_number,
    float: decimal_number,
    str: str,
    object: str,
}
_NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "a single text"}
_EXAMPLES = {bool: "true,false", int: "32,64", float: "0.5,1.0", str: "small,base", object: "a:0.7 b:0.3"}


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _default_text(field: dataclasses.Field, bounds: str) -> str:
    """The range and the default of a field, for help."""
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is None or default is False or default is dataclasses.MISSING:
        return f" ({bounds})" if bounds else ""
    if isinstance(default, list):
        default = " ".join(map(str, default))
    if isinstance(default, float) and default < 1e-3:
        default = f"{default:g}"
    return f" ({bounds}{'; ' * bool(bounds)}default: {_text(default)})"


def _by_class(arguments: type) -> Iterable[dataclasses.Field]:
    """Iterate over the fields of a dataclass, those that it defines before inherited ones."""
    fields = {field.name: field for field in dataclasses.fields(arguments)}
    for each in arguments.__mro__:
        for name in vars(each).get("__annotations__", {}):
            if name in fields:
                yield fields.pop(name)
