"""Fields of the model on the command line: `--model.FIELD VALUE ...`."""

from __future__ import annotations

from typing import Any

from ..yaml_files import Section, parse_yaml
from .parser import words


def split_model_overrides(argv: list[str]) -> tuple[list[str], list[tuple[list[str], Any]]]:
    """Split `--model.X value ...` from the other arguments.

    Returns:
        The other arguments, and for each override the path of its field and its value.

    Raises:
        ValueError: If an override has no value, or one that cannot be read.
    """
    rest: list[str] = []
    overrides = []
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith("--model."):
            rest.append(argument)
            continue
        name, equals, value = argument.partition("=")
        values = [value] if equals else []
        while not equals and arguments and not arguments[0].startswith("--"):
            values.append(arguments.pop(0))
        if not values:
            raise ValueError(f"{name} needs a value.")
        overrides.append((name[len("--model.") :].split("."), _value(name, values)))
    return rest, overrides


def _value(name: str, values: list[str]) -> Any:
    """Read the value of an override: `a b`, `[a, b]` or one value in YAML. `a,b` is split where the field is a list."""
    text = " ".join(values)
    try:
        if len(values) > 1 and not text.startswith(("[", "{")):
            return [parse_yaml(word, name) for word in words(text)]
        return parse_yaml(text, name)
    except ValueError:
        raise ValueError(f"{name} is {text[:60]!r}: give a value, or several separated by spaces.") from None


def set_field(model: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a field of the `model` section, or of one of its sections.

    Raises:
        ValueError: If a part of the path holds a value instead of fields.
    """
    where = ".".join(["model", *path])
    section: Any = model
    for key in path[:-1]:
        if isinstance(section, dict) and section.get(key) is None:
            section[key] = {}
        section = section.get(key) if isinstance(section, dict) else None
    if not isinstance(section, dict):
        raise ValueError(f"{where} is not a known key: {where.rpartition('.')[0]} holds a value, not fields.")
    if path == ["backbone_config"] and not isinstance(value, dict):
        raise ValueError(f"{where} holds fields: give --{where}.FIELD.")
    section[path[-1]] = value
    if isinstance(section, Section):  # the value is no longer that of the file
        section.lines.pop(path[-1], None)
