"""Records of evaluations, one per measured number, kept in `evaluations.json` in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..formatting import one_line
from .atomic import write_text
from .layout import RunFolder


@dataclass
class Evaluation:
    """One measured number, and what it depends on.

    Args:
        model: The name of the evaluated model: that of the run's folder, or of a checkpoint.
        size: The size, such as `384x12`; `-` for a checkpoint of one size.
        task: The task of `poa evaluate`, such as `knn`.
        metric: The metric, such as `knn_accuracy` (see `metrics.METRICS`).
        value: The number, from 0 to 1 (the adjusted Rand index from -0.5).
        dataset: A Hub id, or the last part of a folder's path.
        test_split: The split that was tested on.
        test_images: The number of test images that were used.
        date: The day in UTC, such as `2026-11-26`.
        dataset_config: The configuration of the dataset, if it has several.
        train_split: The split that votes or trains a probe, if the task needs one.
        train_images: The number of its images that were used.
        skipped_images: The number of images of both splits that could not be decoded.
        step: The step of the run; None for a model without a run.
        settings: What else the number depends on, such as `k`.
        details: What was found beside the number, such as the learning rate of the best probe.
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
        """What was measured, as text: of two records with the same key, the later one counts."""
        content = asdict(self)
        for outcome in ("value", "details", "date", "skipped_images"):
            del content[outcome]
        return json.dumps(content, sort_keys=True)


def load_evaluations(path: str | Path) -> list[Evaluation]:
    """Load the records in a file, or in the folder of a run or checkpoint; none if there is no file yet.

    Raises:
        ValueError: If the file does not consist of records.
    """
    path = RunFolder.containing(path).evaluations if Path(path).is_dir() else Path(path)
    if not path.exists():
        return []
    try:
        records = [Evaluation(**record) for record in json.loads(path.read_text())]
        if any(not isinstance(record.value, int | float) for record in records):
            raise TypeError("a value is not a number")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read as evaluations ({one_line(error)}): move it away, or give --output."
        ) from error
    return records


def save_evaluations(path: str | Path, records: Iterable[Evaluation]) -> Path:
    """Add records to a file, or to that of a run, and return its path. Records in it with the same key are replaced.

    The file is complete at every moment. If two evaluations end at the same moment, the records of one may be lost.

    Raises:
        ValueError: If the file does not consist of records, or cannot be written.
    """
    path = RunFolder.containing(path).evaluations if Path(path).is_dir() else Path(path)
    merged = {record.key: record for record in [*load_evaluations(path), *records]}
    lines = [json.dumps(_without_empty_fields(record)) for record in merged.values()]
    try:
        write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({one_line(error)}): give another --output.") from error
    return path


def _without_empty_fields(record: Evaluation) -> dict[str, Any]:
    empty = {f.name for f in fields(record) if getattr(record, f.name) in (None, {})}
    return {name: value for name, value in asdict(record).items() if name not in empty}
