"""Read and write YAML: nothing that a file says is lost, nothing in it is run, a mistake is one sentence with its line.

Plain values are those of YAML 1.2 in their usual spelling: `null`, `true`, `12`, `0.5`, `1e-3`. What YAML 1.1 takes for
something else (`no`, `010`, `1:30`, `2024-01-01`) stays text, which a field reads as its type wants it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from .formatting import printable, shown_name

_LARGEST_FILE = 1_000_000  # bytes; a recipe has a few thousand
_MOST_VALUES = 100_000  # that a file may stand for once its aliases are written out
_TAG = "tag:yaml.org,2002:"


class Section(dict[str, Any]):
    """A mapping of a YAML file that knows the file and the line of each key.

    Attributes:
        path: The file, or what stands for it in messages.
        lines: The line of each key, from 1.
    """

    def __init__(self, path: str = "") -> None:
        super().__init__()
        self.path = path
        self.lines: dict[str, int] = {}

    def without(self, keys: Container[str]) -> Section:
        """Return a copy without some keys."""
        rest = Section(self.path)
        rest.update((key, value) for key, value in self.items() if key not in keys)
        rest.lines = {key: line for key, line in self.lines.items() if key not in keys}
        return rest


@contextmanager
def located(section: Mapping[str, Any]) -> Iterator[None]:
    """Put before a mistake's message the file and line of the first key of a section that the message names."""
    try:
        yield
    except ValueError as error:
        if isinstance(section, Section):
            named = [(*place, line) for name, line in section.lines.items() if (place := _place(name, str(error)))]
            if named:
                raise ValueError(f"{section.path}, line {min(named)[-1]}: {error}") from error
        raise


def _place(name: str, text: str) -> tuple[int, int] | None:
    """Return where a text first has a name as a whole word, and how long it is, so that the longer one comes first."""
    found = re.search(rf"(?<![\w-]){re.escape(shown_name(name))}(?![\w-])", text)
    return (found.start(), -len(name)) if found else None


def read_mapping(path: str | Path) -> Section:
    """Return the `key: value` lines of a YAML file, with the lines of its keys.

    Raises:
        ValueError: If the file does not exist, is not YAML, gives a key twice, holds something other than a mapping, or
            needs more than plain YAML (tags, several documents, aliases that grow without bound).
    """
    if not Path(path).is_file():
        raise ValueError(f"The configuration file {path} does not exist.")
    if (size := Path(path).stat().st_size) > _LARGEST_FILE:
        raise ValueError(f"{path} has {size:,} bytes: give a YAML file of at most {_LARGEST_FILE:,}.")
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: give a YAML file in UTF-8.") from error
    content = parse_yaml(text, str(path))
    if content is None:
        content = Section(str(path))
    if not isinstance(content, Section):
        raise ValueError(f"{path} must hold `key: value` lines, not a {type(content).__name__}.")
    return content


def parse_yaml(text: str, name: str = "The text") -> Any:
    """Return the value of a YAML text; mappings are a `Section`.

    Args:
        text: The text.
        name: What messages call it, such as a file's path.

    Raises:
        ValueError: As `read_mapping`.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return _value(node, name)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"{name}, line {line} holds a character that is no text, U+{error.character:04X}.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(printable(f"{name}{where} is not valid YAML: {_problem(error)}.")) from error
    except RecursionError as error:
        raise ValueError(f"{name} is nested too deeply: give it fewer brackets and levels.") from error


def yaml_text(content: Any) -> str:
    """Return a value as YAML that `parse_yaml` reads back."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)


class _Number(float):
    """A number that remembers how it was written: `1.10` is 1.1 for a number, and `1.10` for the name of a version."""

    text: str

    def __new__(cls, text: str | float) -> _Number:
        number = super().__new__(cls, text)
        number.text = str(text)
        return number

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


class _Loader(yaml.SafeLoader):
    """Composes nodes of plain YAML: no tags, and the values of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None) not in (None, "!"):
            problem = f"the tag {event.tag.replace(_TAG, '!!')} is not read: write the value without a tag"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)


for _kind, _pattern in {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"0|-?[1-9][0-9]{0,17}",
    "float": r"[-+]?(?:(?:[0-9]*\.[0-9]+|[0-9]+\.)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))"
    r"|\.(?:nan|NaN|NAN)",
    "merge": "<<",
}.items():
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"(?:{_pattern})\\Z"), None)


class _Dumper(yaml.SafeDumper):
    """Writes the values of `parse_yaml` in the types that they extend."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(Section, lambda dumper, value: dumper.represent_dict(dict(value)))
_Dumper.add_representer(_Number, lambda dumper, value: dumper.represent_float(float(value)))


def _value(node: yaml.Node, name: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _section(node, name)
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, name) for each in node.value]
    kind, text = node.tag.removeprefix(_TAG), node.value
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text)
    if kind == "float":
        if text[-1].isalpha():  # .inf and .nan
            return float(text.lower().replace(".", ""))
        return float(text) if repr(float(text)) == text else _Number(text)
    return text


def _section(node: yaml.MappingNode, name: str) -> Section:
    section = Section(name)
    merged: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag == _TAG + "merge":
            key: Any = "<<"
        elif not isinstance(key_node, yaml.ScalarNode):
            raise ValueError(f"{name}, line {line} has a key that is a list or a mapping: give a name.")
        else:
            key = _value(key_node, name)
        if str(key) in section.lines or key in section:
            first = section.lines.get(str(key)) or next(section.lines[str(k)] for k in section if k == key)
            again = "twice" if first == line else f"again, which line {first} has given"
            raise ValueError(f"{name}, line {line} gives {printable(str(key)[:60])} {again}: keep one.")
        section.lines[str(key)] = line
        if key_node.tag == _TAG + "merge":
            merged = _merged(value_node, name, line)
        else:
            section[key] = _value(value_node, name)
    for key, value in merged.items():  # a key of the mapping itself replaces a merged one: that is what merging is for
        section.setdefault(key, value)
    return section


def _merged(node: yaml.Node, name: str, line: int) -> dict[Any, Any]:
    """Return what `<<` brings in: a mapping, or several without a common key."""
    value = _value(node, name)
    merged: dict[Any, Any] = {}
    for part in value if isinstance(value, list) else [value]:
        if not isinstance(part, Section):
            raise ValueError(f"{name}, line {line}: << takes a mapping or a list of mappings.")
        if twice := sorted(map(str, part.keys() & merged.keys())):
            raise ValueError(f"{name}, line {line} merges two mappings with the key {twice[0]}: keep one of them.")
        merged |= part
    return merged


def _check_size(root: yaml.Node) -> None:
    """Refuse a node whose aliases contain themselves or multiply (each is a reference that the file does not spell)."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        key = id(node)
        if key in open_nodes:
            raise yaml.composer.ComposerError(None, None, "an alias stands for what contains it", node.start_mark)
        if key not in sizes:
            open_nodes.add(key)
            children = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [part for each in children for part in (each if isinstance(each, tuple) else (each,))]
            sizes[key] = 1 + sum(map(size, parts))
            open_nodes.discard(key)
            if sizes[key] > _MOST_VALUES:
                problem = f"its aliases stand for more than {_MOST_VALUES:,} values"
                raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return sizes[key]

    size(root)


def _problem(error: yaml.MarkedYAMLError) -> str:
    """What is wrong, in the words of PyYAML or in better ones."""
    problem = " ".join((error.problem or str(error)).split())
    if problem == "but found another document":
        return "a second document begins here: keep one"
    if "found character '\\t'" in problem:
        return "a tab stands where a value or an indentation begins: indent with spaces"
    return problem
