"""Several datasets that are trained on at once, each with a share of the images.

Which dataset fills a position is a pure function of the seed and the position: the endless row of places is cut into
blocks, each of which holds every dataset as often as its share says, in an order of its own.

Follows `sources`, which opens the datasets; `order` fills positions with their rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MIXING = 0x6D697869  # last word of the seed of a block's order; see order.py
_FINEST = 10_000  # a share is a multiple of one of so many
_BLOCK = 1000  # places of a block at least


class DatasetMixture:
    """Several datasets for `PoaTrainer`, each with a share of the images of every batch.

    An epoch of a mixture has as many images as all datasets together. Within it, a dataset of a large share begins
    anew while one of a small share is not yet at its end.

    Args:
        datasets: What `PoaTrainer` takes as `train_dataset`, two or more: streams, and datasets read by index.
        weights: A positive number for each; shares are these divided by their sum, in steps of 0.01 %. Alike if not
            given.
        names: What logs and messages call each of them, before the names of its rows; `0`, `1`, ... if not given.
        image_columns: The column of each with the images; by default what the trainer's arguments say, or the one that
            is found by its type or name.

    Raises:
        ValueError: For less than two datasets, or weights or names that do not fit them.

    Example:
        >>> from poa_hf.data.textures import TextureDataset
        >>> mixture = DatasetMixture([TextureDataset(), TextureDataset(seed=1)], [3, 1], ["old", "new"])
        >>> mixture.shares
        [0.75, 0.25]
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        weights: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
        image_columns: Sequence[str | None] | None = None,
    ):
        self.datasets = list(datasets)
        count = len(self.datasets)
        self.names = [str(number) for number in range(count)] if names is None else list(names)
        self.image_columns = [None] * count if image_columns is None else list(image_columns)
        weights = [1.0] * count if weights is None else list(weights)
        if count < 2:
            raise ValueError(f"A mixture of {count} datasets is none: give two or more, or the dataset itself.")
        for what, given in (("weights", weights), ("names", self.names), ("image_columns", self.image_columns)):
            if len(given) != count:
                raise ValueError(f"{len(given)} {what} for {count} datasets: give one each.")
        if len(set(self.names)) < count:
            raise ValueError(f"The datasets of a mixture are called {', '.join(self.names)}: give different names.")
        self.weights = [_number(weight) for weight in weights]
        self.counts = block_counts(self.weights)

    @property
    def shares(self) -> list[float]:
        """The share of each dataset among all images, as it is used."""
        return [count / sum(self.counts) for count in self.counts]


def block_counts(weights: Sequence[float]) -> tuple[int, ...]:
    """Return how many places of a block each dataset has, for weights of any sum.

    Raises:
        ValueError: For weights that are not positive numbers, or so small that one has no place.

    Example:
        >>> block_counts([0.7, 0.3]), block_counts([1, 2])
        ((700, 300), (3333, 6667))
    """
    for weight in weights:
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"The weight {weight:g} of a dataset is not above 0: give a positive number.")
    exact = [_FINEST * weight / math.fsum(weights) for weight in weights]
    counts = [math.floor(round(each, 6)) for each in exact]
    by_rest = sorted(range(len(exact)), key=lambda number: (counts[number] - exact[number], number))
    for number in by_rest[: _FINEST - sum(counts)]:
        counts[number] += 1
    if 0 in counts:
        smallest = weights[counts.index(0)] / math.fsum(weights)
        raise ValueError(f"A dataset has a share of {smallest:.2g}: give weights that are 0.0001 of their sum or more.")
    divisor = math.gcd(*counts)
    repeats = -(-_BLOCK * divisor // _FINEST)
    return tuple(count // divisor * repeats for count in counts)


def _number(weight: Any) -> float:
    try:
        return float(weight)
    except (TypeError, ValueError):
        raise ValueError(f"The weight {weight!r} of a dataset is no number: give a positive number.") from None


@dataclass(frozen=True)
class Mixing:
    """Which dataset fills each place of the endless row of images, and how many of its rows come before.

    Args:
        counts: How many places of a block each dataset has.
        seed: The seed of the run.
    """

    counts: tuple[int, ...]
    seed: int

    def __call__(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of each place's dataset, and that of its row among those of this dataset: int64 (N,)."""
        if len(self.counts) == 1:
            return np.zeros_like(places), places
        size = sum(self.counts)
        blocks, offsets = places // size, places % size
        which, rows = np.empty_like(places), np.empty_like(places)
        for block in np.unique(blocks):
            now = blocks == block
            datasets, before = _block(self.counts, self.seed, int(block))
            which[now] = datasets[offsets[now]]
            rows[now] = block * np.array(self.counts)[which[now]] + before[offsets[now]]
        return which, rows


@functools.lru_cache(maxsize=16)
def _block(counts: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The dataset of each place of a block, and how often it comes before in the block."""
    rng = np.random.default_rng([seed, block, MIXING])
    datasets = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    before = np.empty_like(datasets)
    for number, count in enumerate(counts):
        before[datasets == number] = np.arange(count)
    return datasets, before
