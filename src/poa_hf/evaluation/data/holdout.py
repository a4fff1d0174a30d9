"""A held-out part of a split, for datasets that have only one: chosen at random, with the same share of every class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from .split_rows import SplitRows

RowsT = TypeVar("RowsT", bound=SplitRows[Any])
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HoldOut:
    """How a test split was made of a train split.

    Args:
        fraction: The share of each class that is held out, above 0 and below 1.
        seed: The seed of the choice.

    Raises:
        ValueError: For a fraction outside (0, 1), or a negative seed.
    """

    fraction: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(
                f"--holdout is {self.fraction:g}: give the share of images to test on, above 0 and below 1, such as "
                "0.2."
            )
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}: give at least 0.")

    def split(
        self, images: RowsT, max_train_images: int | None = None, max_test_images: int | None = None
    ) -> tuple[RowsT, RowsT]:
        """Divide a split into a train and a test part, which share no row.

        Every class with at least two images has at least one in each part; the only image of a class stays in the train
        part. The choice depends on the labels, their order and the seed alone, so all processes make the same one. The
        labels are read once for it.

        Args:
            images: All rows of the split.
            max_train_images: The number of rows of the train part to use, chosen at random; all by default.
            max_test_images: The same of the test part.

        Raises:
            ValueError: If no class has two images, or a label is missing or not a class.
        """
        if images.is_stream and images.limit is not None:
            raise ValueError("Part of a stream cannot be held out of a sample of it: leave out its limit.")
        shards = images.labels()
        labels = [label for shard in shards for label in shard]
        random = np.random.default_rng(self.seed)
        tested, alone = self._choose(labels, random)
        if not tested.any():
            raise ValueError(
                f"Every class of the {images.name} split has one image only, so no image can be held out: give more "
                "images, or a test split of its own with --test_split."
            )
        if alone:
            logger.warning(
                "%d of %d classes of the %s split have one image only: it is not held out, so these classes are not "
                "tested.",
                alone,
                len({*labels}),
                images.name,
            )
        train = _limited(np.flatnonzero(~tested), max_train_images, random)
        test = _limited(np.flatnonzero(tested), max_test_images, random)
        lengths = [len(shard) for shard in shards]
        return images.part(train, lengths), images.part(test, lengths)

    def _choose(self, labels: Sequence[int | str], random: np.random.Generator) -> tuple[np.ndarray, int]:
        """Return which rows are tested on (N,), and the number of classes with one row only."""
        rows_by_class: dict[int | str, list[int]] = {}
        for row, label in enumerate(labels):
            rows_by_class.setdefault(label, []).append(row)
        tested, alone = np.zeros(len(labels), dtype=bool), 0
        for rows in rows_by_class.values():
            count = min(max(round(self.fraction * len(rows)), 1), len(rows) - 1)
            tested[random.permutation(rows)[:count]] = True
            alone += len(rows) == 1
        return tested, alone


def _limited(rows: np.ndarray, limit: int | None, random: np.random.Generator) -> np.ndarray:
    if limit is None or limit >= len(rows):
        return rows
    return np.sort(random.choice(rows, limit, replace=False))
