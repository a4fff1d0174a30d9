"""Results of evaluations: one record per number, kept in `evaluations.json` beside the run they are about."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .atomic import write_text
from .layout import RunFolder


@dataclass
class Evaluation:
    """One measured number.

    `value` is from 0 to 1 (the adjusted Rand index from -0.5). `settings` are what the number depends on, as `k`;
    `details` what came out beside it, as the learning rate that was picked. `size` is `384x12`, or `-` for a checkpoint
    of one size; `step` the run's, None where there is none; `date` the day in UTC. `train_images` and `test_images`
    count those that were used, `skipped_images` those of both that could not be decoded.
    """

    model: str
    size: str
    task: str
    metric: str
    value: float
    dataset: str
    test_split: str
    test_images: int
    date: str
    dataset_config: str | None = None
    train_split: str | None = None
    train_images: int | None = None
    skipped_images: int = 0
    step: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same for two measurements of the same thing, of which the later one counts."""
        content = asdict(self)
        for outcome in ("value", "details", "date", "skipped_images"):
            del content[outcome]
        return json.dumps(content, sort_keys=True)


def load_evaluations(path: str | Path) -> list[Evaluation]:
    """The records in a file, or in a run's folder; none where there is no file yet.

    Raises:
        ValueError: for a file that is not made of such records.
    """
    path = RunFolder.containing(path).evaluations if Path(path).is_dir() else Path(path)
    if not path.exists():
        return []
    try:
        records = [Evaluation(**record) for record in json.loads(path.read_text())]
        if any(not isinstance(record.value, int | float) for record in records):
            raise TypeError("a value is no number")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} can't be read as evaluations ({error}): move it away, or give --output.") from error
    return records


def save_evaluations(path: str | Path, records: Iterable[Evaluation]) -> Path:
    """Add records to a file, or to that of a run's folder; the file's own records of the same things are replaced.

    The file is whole at every moment. Gives its path. Two evaluations that end at the same moment may lose one's.

    Raises:
        ValueError: for a file that is not made of such records, or that can't be written.
    """
    path = RunFolder.containing(path).evaluations if Path(path).is_dir() else Path(path)
    merged = {record.key: record for record in [*load_evaluations(path), *records]}
    lines = [json.dumps(_shown(record)) for record in merged.values()]
    try:
        write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")
    except OSError as error:
        raise ValueError(f"{path} can't be written ({error}): give another --output.") from error
    return path


def _shown(record: Evaluation) -> dict:
    """Without what says nothing."""
    empty = {f.name for f in fields(record) if getattr(record, f.name) in (None, {})}
    return {name: value for name, value in asdict(record).items() if name not in empty}
