"""Where images come from, by name: whether two splits have rows in common, however they are written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.sources import TEXTURES
from ...runs.layout import RunFolder
from ...yaml_files import read_mapping

_ALL = "all"  # what `datasets` calls all splits together
_ANY_LENGTH = 1_000_000  # assumed of a split whose number of rows is not known; percentages hold for any


@dataclass(frozen=True)
class Source:
    """A split of a dataset, by its name.

    Args:
        dataset: A Hub id, or a folder's path.
        config: The configuration of the dataset.
        split: A split, or slices of splits as `datasets` writes them, such as `train[:80%]`.
        data_dir: The folder within the dataset, if only that one is read.
        data_files: The files of the dataset, as patterns, if only these are read.
    """

    dataset: str
    config: str | None
    split: str
    data_dir: str | None = None
    data_files: tuple[str, ...] = ()

    def overlaps(self, other: Source) -> bool:
        """Whether both are of the same dataset and have rows in common.

        A folder is the same by any path, also through a link. The built-in textures of training are never those of an
        evaluation.
        """
        if TEXTURES in (self.dataset, other.dataset):
            return False
        if self.data_files and other.data_files and not {*self.data_files} & {*other.data_files}:
            return False
        same = self._location == other._location and self.config == other.config
        return same and splits_overlap(self.split, other.split)

    @property
    def _location(self) -> str:
        path = Path(self.dataset).expanduser()
        if path.exists():
            return str((path / (self.data_dir or "")).resolve())
        return "/".join([self.dataset, *([self.data_dir] if self.data_dir else [])]).rstrip("/")


@dataclass(frozen=True)
class SeveralSources:
    """Splits of several datasets, on which one run was trained."""

    sources: tuple[Source, ...]

    def overlaps(self, other: Source) -> bool:
        """Whether one of them has rows in common with `other`."""
        return any(each.overlaps(other) for each in self.sources)


def training_source(run: RunFolder) -> Source | SeveralSources | None:
    """Return the images that a run was trained on; None if its recipe does not say so."""
    try:
        recipe = read_mapping(run.recipe)
    except (ValueError, OSError):
        return None
    if isinstance(listed := recipe.get("datasets"), list):
        split = {"dataset_split": recipe.get("dataset_split")}
        found = [_source_of({**split, **each}) for each in listed if isinstance(each, dict)]
        return SeveralSources(tuple(each for each in found if each is not None))
    return _source_of(recipe)


def _source_of(recipe: Mapping[str, Any]) -> Source | None:
    values = [recipe.get(name) for name in ("dataset_name", "dataset_config_name", "dataset_split")]
    dataset, config, split = (value if isinstance(value, str) else None for value in values)
    return None if dataset is None else Source(dataset, config, split or "train", **source_part(recipe))


def source_part(part: Mapping[str, Any]) -> dict[str, Any]:
    """Return which part of a dataset a recipe or an evaluation names, as `Source` takes it."""
    data_dir, data_files = part.get("data_dir"), part.get("data_files")
    files = (data_files,) if isinstance(data_files, str) else tuple(map(str, data_files or ()))
    return {"data_dir": data_dir if isinstance(data_dir, str) else None, "data_files": files}


def splits_overlap(first: str, second: str, lengths: Mapping[str, int] | None = None) -> bool:
    """Whether two splits of one dataset have rows in common: `train` and `train[:]`, or `train[:80%]` and
    `train[70%:]`.

    Args:
        first: A split, as `datasets` writes it.
        second: The other one.
        lengths: The number of rows of each whole split, as far as it is known.
    """
    if _ALL in (first, second):
        return True
    mine, theirs = _ranges(first, lengths or {}), _ranges(second, lengths or {})
    return any(a == b and max(start, left) < min(stop, right) for a, start, stop in mine for b, left, right in theirs)


def split_lengths(dataset: Any) -> dict[str, int]:
    """Return the number of rows of each split that a `datasets` dataset declares."""
    splits = getattr(getattr(dataset, "info", None), "splits", None) or {}
    return {str(name): split.num_examples for name, split in splits.items() if split.num_examples}


def _ranges(split: str, lengths: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Return the rows of slices: (split, start, stop)."""
    names = [part.partition("[")[0].strip() for part in split.split("+")]
    if not re.search(r"[\[+]", split):
        return [(names[0], 0, _ANY_LENGTH)]
    from datasets import ReadInstruction

    known = {name: lengths.get(name, _ANY_LENGTH) for name in names}
    try:
        parts = ReadInstruction.from_spec(split).to_absolute(known)
    except (ValueError, AssertionError):  # not a slice; opening it says so
        return [(split, 0, _ANY_LENGTH)]
    return [(part.splitname, part.from_, part.to) for part in parts]
