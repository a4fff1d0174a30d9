"""Records of evaluations, one per measured number, kept in `evaluations.json` in the run's folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ..formatting import one_line
from ..ranges import plain
from .atomic import write_text
from .json_files import read_json
from .layout import RunFolder
from .lock import LockedError, locked

_PATIENCE = 60  # seconds to wait for another evaluation that writes its records
# what comes out of a measurement, while the other fields say what was measured
_OUTCOMES = ("value", "interval", "details", "date", "skipped_images", "coinciding_images", "pretrained_on_test")
_NUMBERS = {"k", "label_share", "within"}  # settings that names and orders of metrics are made from


@dataclass
class Evaluation:
    """One measured number, and what it depends on.

    Args:
        model: The name of the evaluated model: that of the run's folder, or of a checkpoint.
        size: The size, such as `384x12`; `-` for a checkpoint of one size.
        task: The task of `poa evaluate`, such as `knn`.
        metric: The metric, such as `knn_accuracy` (see `metrics.METRICS`).
        value: The number, from 0 to 1 (the adjusted Rand index from -0.5, the background gap from -1).
        dataset: A Hub id, or the last part of a folder's path.
        test_split: The split that was tested on.
        test_images: The number of test images that were used.
        date: The day in UTC, such as `2026-11-26`.
        dataset_config: The configuration of the dataset, if it has several.
        train_split: The split that votes or trains a probe, if the task needs one.
        train_images: The number of its images that were used.
        holdout: The share of the train split that was held out at random as the test split, if it was made that way.
        holdout_seed: The seed of that choice.
        coinciding_images: The number of test images that are also train images, where they were compared.
        pretrained_on_test: Whether the run was pre-trained, without labels, on the split that was tested on.
        skipped_images: The number of images of both splits that could not be decoded.
        step: The step of the run; None for a model without a run.
        settings: What else the number depends on, such as `k`.
        details: What was found beside the number, such as the learning rate of the best probe.
        interval: The ends of the number's 95 % interval, for other test images of the same kind, if it is known.
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
    holdout: float | None = None
    holdout_seed: int | None = None
    coinciding_images: int | None = None
    pretrained_on_test: bool = False
    skipped_images: int = 0
    step: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    interval: list[float] | None = None

    def __post_init__(self) -> None:
        # a file holds Python's own numbers, and what was measured may be one of NumPy's
        for each in fields(self):
            setattr(self, each.name, plain(getattr(self, each.name)))

    @property
    def key(self) -> str:
        """What was measured, as text: of two records with the same key, the later one counts."""
        content = asdict(self)
        for outcome in _OUTCOMES:
            del content[outcome]
        return json.dumps(content, sort_keys=True)

    @property
    def test_set(self) -> tuple[str, str, str, float, int]:
        """Which images were tested on: dataset, configuration and split, share and seed of a hold-out."""
        hold_out = (self.holdout or 0.0, self.holdout_seed or 0)
        return (self.dataset, self.dataset_config or "", self.test_split, *hold_out)


def load_evaluations(path: str | Path) -> list[Evaluation]:
    """Load the records in a file, or in the folder of a run or checkpoint; none if there is no file yet.

    Raises:
        ValueError: If the file does not consist of records.
    """
    path = RunFolder.containing(path).evaluations if Path(path).is_dir() else Path(path)
    if not path.exists():
        return []
    try:
        content = read_json(path)
        if not isinstance(content, list):
            raise ValueError("it is not a list")
        return [_record(each, number) for number, each in enumerate(content, 1)]
    except (ValueError, RecursionError) as error:
        reason = one_line(error).removeprefix(f"{path} cannot be read: ")
        raise ValueError(f"{path} cannot be read as evaluations ({reason}): move it away, or give --output.") from error


def save_evaluations(path: str | Path, records: Iterable[Evaluation]) -> Path:
    """Add records to a file, or to that of a run, and return its path. Records in it with the same key are replaced.

    The file is complete at every moment. Evaluations that end at the same moment wait for each other.

    Raises:
        ValueError: If the file does not consist of records, or cannot be written.
    """
    path = RunFolder.containing(path).evaluations if Path(path).is_dir() else Path(path)
    try:
        with locked(path.with_name(f".{path.name}.lock"), patience=_PATIENCE):
            sound = (replace(record, interval=sound_interval(record.interval)) for record in records)
            merged = {record.key: record for record in [*load_evaluations(path), *sound]}
            lines = [json.dumps(_without_empty_fields(record)) for record in merged.values()]
            write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")
    except LockedError as error:
        raise ValueError(f"{path} is being written by {error}: try again, or give another --output.") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({one_line(error)}): give another --output.") from error
    return path


def _record(content: Any, number: int) -> Evaluation:
    """Make a record of an object in the file, or raise ValueError."""
    try:
        record = Evaluation(**content)
        record.interval = sound_interval(record.interval)
    except TypeError as error:
        reason = one_line(error).replace("Evaluation.__init__()", "it")
        raise ValueError(f"record {number} is not an evaluation: {reason}") from None
    for name, kind in get_type_hints(Evaluation).items():
        value = getattr(record, name)
        if not _fits(value, kind):
            raise ValueError(f"record {number} is not an evaluation: its {name} is {one_line(repr(value), 60)}")
    for name in _NUMBERS & record.settings.keys():
        if not _fits(record.settings[name], float):
            raise ValueError(f"record {number} is not an evaluation: its setting {name} is not a number")
    return record


def sound_interval(ends: Any) -> list[float] | None:
    """Return the ends of an interval as a list, or None for anything but two finite numbers in order.

    An interval comes beside a number, which stays worth keeping without it.
    """
    if not isinstance(ends, list | tuple) or len(ends) != 2 or not all(_fits(end, float) for end in ends):
        return None
    low, high = ends
    return [low, high] if math.isfinite(low) and math.isfinite(high) and low <= high else None


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value from a file has the type of a field; whole numbers are decimal numbers too."""
    if isinstance(value, int) and abs(value) >= 1 << 63:  # which no number of images is, nor a decimal number
        return False
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    kinds = tuple(get_origin(each) or each for each in kinds)
    if isinstance(value, bool):  # which is a number in Python
        return bool in kinds
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


def _without_empty_fields(record: Evaluation) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if not _is_empty(value)}


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value == {}
