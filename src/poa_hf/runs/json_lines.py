"""Logs with one JSON object per line, each of which has a `step`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .atomic import write_text


class JsonLines:
    """Writes a log. When a run is resumed, lines after `last_step`, which will be written again, are dropped first.

    Args:
        path: The file of the log.
        last_step: The last step whose line is kept.
        enabled: Whether to write at all; if not, nothing is read or written.
    """

    def __init__(self, path: Path, last_step: int, enabled: bool):
        self.path, self.enabled = path, enabled
        if enabled and path.exists():
            kept = [line for line, content in _parse(path) if content["step"] <= last_step]
            write_text(path, "".join(f"{line}\n" for line in kept))

    def write(self, content: dict[str, Any]) -> None:
        """Append one line."""
        if self.enabled:
            with open(self.path, "a") as file:
                file.write(json.dumps(content) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; none if it does not exist. Broken lines, such as one that is being written, are left out."""
    try:
        return [content for _, content in _parse(path)]
    except OSError:
        return []


def _parse(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each valid line as text, and its content."""
    for line in path.read_text(errors="replace").splitlines():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:  # half-written when the run was killed
            continue
        if isinstance(content, dict) and isinstance(content.get("step"), int):
            yield line, content
