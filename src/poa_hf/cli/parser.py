"""The parser of every command: argparse with lists, near names for mistakes, and errors that are one sentence."""

from __future__ import annotations

import argparse
import functools
import math
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..formatting import enumerated, suggest
from ..ranges import Range
from .other_names import refused
from .token import hide_tokens, use_token


def whole_number(text: str) -> int:
    """Read a whole number, also one written `1e4`."""
    try:
        number = float(text)
        if number != int(number):
            raise ValueError
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,100}", text) else int(number)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"is {text[:60]!r}: give a whole number") from None


def decimal_number(text: str) -> float:
    """Read a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text[:60]!r}: give a number") from None


def _path(text: str) -> Path:
    """Read a path. Shells leave `~` to the program after `=`, as in `--output=~/models`."""
    return Path(os.path.expanduser(text))


def number_in(allowed: Range) -> Callable[[str], float]:
    """Return a reader of numbers in a range."""

    def read(text: str) -> float:
        number = whole_number(text) if allowed.whole else decimal_number(text)
        if number not in allowed:
            raise argparse.ArgumentTypeError(f"is {text[:60]!r}: give {allowed}")
        return number

    return read


def numbers_in(allowed: Range) -> Callable[[str], tuple[float, ...]]:
    """Return a reader of lists of numbers in a range."""
    read_one = number_in(allowed)

    def read(text: str) -> tuple[float, ...]:
        try:
            return tuple(map(read_one, words(text)))
        except argparse.ArgumentTypeError:
            numbers = allowed.described(several=True)
            raise argparse.ArgumentTypeError(f"is {text[:60]!r}: give {numbers}, such as 10 20 or 10,20") from None

    return read


def words(text: str) -> list[str]:
    """Read a list: `a,b`, `a b` or `[a, b]`."""
    return [word for word in re.split(r"[\s,]+", text.strip().removeprefix("[").removesuffix("]")) if word]


_SEPARATOR = "\0"  # between values that may hold spaces and commas; no argument of a process can hold it


def separate_words(text: str) -> list[str]:
    """Read the values of an option added with `separate=True`, each as it was written."""
    return text.split(_SEPARATOR)


_MOST_LISTED = 12  # options that a message lists when none is near what was written


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose mistakes are a `ValueError` of one sentence.

    Options may be written with hyphens or underscores. A list is an option added with `several=True`: its values may be
    separated by spaces or commas, or, with `separate=True`, are kept as they are written, such as names of files.
    """

    def __init__(self, prog: str, description: str, epilog: str | None = None, usage: str | None = None) -> None:
        self._known_options: dict[str, argparse.Action] = {}
        self._tasks_of: dict[str, Sequence[str]] = {}  # of options that are only for some tasks
        self._list_options: dict[str, str] = {}  # what its values are joined by
        self._positional_count = 0  # of those that have to be given
        self._most_positionals: float = 0
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=functools.partial(argparse.HelpFormatter, max_help_position=34, width=_help_width()),
        )

    def add_option(
        self,
        *names: str,
        group: Any = None,
        several: bool = False,
        separate: bool = False,
        tasks: Sequence[str] = (),
        **settings: Any,
    ) -> argparse.Action:
        """Add an option or a positional argument as `add_argument` does, under the heading of `group` in help.

        An option of some `tasks` is refused where `--tasks` has none of them.
        """
        shown = settings.get("default") not in (None, False, argparse.SUPPRESS) and names[0].startswith("-")
        if shown and "(default" not in settings["help"]:
            settings["help"] += " (default: %(default)s)"
        if settings.get("type") is Path:
            settings["type"] = _path
        action = (self if group is None else group).add_argument(*names, **settings)
        if tasks:
            self._tasks_of[action.dest] = tasks
        if names[0].startswith("-"):
            self._known_options.update(dict.fromkeys(names, action))
            if several or separate:
                self._list_options.update(dict.fromkeys(names, _SEPARATOR if separate else ","))
        else:
            self._positional_count += settings.get("nargs") != "?"
            self._most_positionals += math.inf if settings.get("nargs") == "+" else 1
        return action

    def parse_args(self, argv: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Read the arguments.

        Raises:
            ValueError: For an option that does not exist (with the nearest ones), a value that does not fit, or an
                option of a task that is not asked for.
        """
        parsed = super().parse_args(self._prepared(argv or []), namespace)
        for name, tasks in self._tasks_of.items():
            if getattr(parsed, name) != self.get_default(name) and not set(tasks) & set(parsed.tasks):
                only = len(tasks) == 1
                which = f"task {tasks[0]}, which is not" if only else f"tasks {enumerated(tasks)}, which are not"
                add = "it" if only else "one"
                raise ValueError(f"--{name} is for the {which} among --tasks: add {add}, or leave out --{name}.")
        if (token := vars(parsed).pop("token", None)) is not None:
            use_token(token)
        if "hub_token" in parsed:  # for pushing only, where it may be another one
            hide_tokens()
        return parsed

    def add_token(self, group: Any = None) -> None:
        """Add `--token`, which `parse_args` puts to use and does not return."""
        self.add_option(
            "--token", group=group, metavar="TOKEN", default=argparse.SUPPRESS, help="your token of the Hub, for this "
            "command only: it is saved nowhere. Other users of the machine may see it; HF_TOKEN in the environment or "
            "hf auth login keeps it from them",
        )  # fmt: skip

    def _prepared(self, argv: Sequence[str]) -> list[str]:
        """Return the arguments with each option's values joined to it, which argparse cannot mistake for others."""
        prepared: list[str] = []
        bare: list[str] = []
        swallowed = None  # where a list may have taken the positional argument that follows it
        rest = list(argv)
        while rest:
            token = rest.pop(0)
            if not token.startswith("--") or token == "--":
                if token in ("-h", "--"):
                    prepared.append(token)
                else:
                    bare.append(token)
                continue
            name, equals, value = token.partition("=")
            name = self.known_name(name)
            action = self._known_options.get(name)
            if action is None or action.nargs == 0:  # --help, or a flag
                if equals:
                    raise ValueError(f"{name} takes no value.")
                prepared.append(name)
                continue
            values = [value] if equals else []
            at_most = len(rest) if name in self._list_options else 1
            while not equals and rest and len(values) < at_most and not rest[0].startswith("--") and rest[0] != "-h":
                values.append(rest.pop(0))
            if not values:
                if action.nargs != "?":
                    raise ValueError(f"{name} needs a value.")
                prepared.append(name)
                continue
            if len(values) > 1:
                swallowed = len(prepared), name, values
            prepared.append(f"{name}={self._list_options.get(name, '').join(values)}")
        if swallowed and len(bare) < self._positional_count:
            at, name, values = swallowed
            bare.append(values[-1])
            prepared[at] = f"{name}={self._list_options[name].join(values[:-1])}"
        if len(bare) > self._most_positionals:
            extra = bare[int(self._most_positionals)]
            raise ValueError(f"{extra!r} belongs to no option: see {self.prog} --help.")
        return [*bare, *prepared]

    def known_name(self, name: str) -> str:
        """Return an option's name as it was added.

        Raises:
            ValueError: If there is no such option.
        """
        for spelling in (name, "--" + name[2:].replace("-", "_")):
            if spelling in self._known_options or spelling == "--help":
                return spelling
        names = [each[2:] for each, action in self._known_options.items() if action.help is not argparse.SUPPRESS]
        hint = self.instead_of(name[2:]) or suggest(name[2:], names, "--")
        if hint.startswith(("choose from", "none of the")) and len(names) > _MOST_LISTED:
            hint = f"see {self.prog} --help."
        raise ValueError(f"{name} is not an option of {self.prog}: {hint}")

    def instead_of(self, name: str) -> str | None:
        """Return what to write instead of an option of other programs, or None; commands may know more of them."""
        return refused(name.replace("-", "_"))

    def error(self, message: str) -> NoReturn:
        """Raise argparse's message as a sentence."""
        if match := re.match(r"the following arguments are required: (.*)", message):
            missing = [name if name.startswith("-") else name.upper() for name in match[1].split(", ")]
            raise ValueError(f"Give {' and '.join(missing)}: see {self.prog} --help.")
        message = re.sub(r"^argument (\S+?)(?:/\S+)?: is ", r"\1 is ", message)
        if match := re.match(r"argument (\S+): invalid choice: ('.*?') \(choose from (.*)\)", message):
            raise ValueError(f"{match[1]} is {match[2]}: choose from {match[3].replace(chr(39), '')}.")
        raise ValueError(f"{message[0].upper()}{message[1:].rstrip('.')}.")


def _help_width() -> int:
    return max(60, min(shutil.get_terminal_size().columns, 120))
