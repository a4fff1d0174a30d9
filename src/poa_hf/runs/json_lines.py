"""Logs with one JSON object per line, each of which has a `step`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..formatting import listed
from .atomic import write_text
from .writing import writing

logger = logging.getLogger(__name__)


class JsonLines:
    """Writes a log. When a run is resumed, lines after `last_step`, which will be written again, are dropped first.

    Args:
        path: The file of the log.
        last_step: The last step whose line is kept.
        enabled: Whether to write at all; if not, nothing is read or written.
        known: The lines that the log should have by now. Those that a crash has cut or damaged are written again.

    Raises:
        ValueError: If the path is that of something else than a file.
    """

    def __init__(self, path: Path, last_step: int, enabled: bool, known: Sequence[dict[str, Any]] = ()):
        self.path, self.enabled = path, enabled
        if not enabled:
            return
        if path.is_symlink() and not path.exists():
            path.unlink()  # appending would make a file elsewhere
        if path.exists():
            if not path.is_file():
                raise ValueError(f"{path} is not a file: move it away, as the log of the run is written there.")
            lines = [(content["step"], line) for line, content in _parse(path)]
            steps = {step for step, _ in lines}
            lines += [(line["step"], json.dumps(line)) for line in known if line["step"] not in steps]
            kept = sorted((step, index) for index, (step, _) in enumerate(lines) if step <= last_step)
            write_text(path, "".join(f"{lines[index][1]}\n" for _, index in kept))

    def write(self, content: dict[str, Any]) -> None:
        """Append one line."""
        if self.enabled:
            with writing(self.path), open(self.path, "a") as file:
                file.write(json.dumps(content) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; none if it does not exist. Broken lines are left out, with a warning."""
    if not path.is_file():
        return []
    try:
        return [content for _, content in _parse(path)]
    except OSError as error:
        logger.warning("%s cannot be read: %s.", path, error.strerror)
        return []


def first_line(path: Path, last_step: int) -> str | None:
    """The first line of a log, by which runs are told apart; None if there is none up to this step."""
    lines = _parse(path) if path.is_file() else iter(())
    return next((line for line, content in lines if content["step"] <= last_step), None)


def broken_lines(path: Path) -> list[int]:
    """The numbers of the lines of a log that are not lines of a log, from 1.

    A last line without its end does not count: it is being written, or was when the run was killed.
    """
    lines = _lines(path)
    broken = [number for number, line in enumerate(lines, 1) if _content(line) is None]
    return [number for number in broken if number < len(lines) or lines[-1].endswith("\n")]


def _parse(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each valid line as text, and its content."""
    if broken := broken_lines(path):
        logger.warning("%s is damaged and read without its broken lines (%s).", path, listed(broken))
    for line in _lines(path):
        if (content := _content(line)) is not None:
            yield line.rstrip("\n"), content


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)


def _content(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and isinstance(content.get("step"), int) else None
