"""Rows of one split, read in batches that any number of processes can share.

A batch consists of consecutive rows of one file, and one process or worker makes all of it, so what a batch holds does
not depend on their number.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Generic, Self, TypeVar

import numpy as np

from ...data.columns import find_image_column, image_of_item
from ...data.crop_arguments import MAX_IMAGE_PIXELS
from ...data.decoding import UndecodableImage
from ...data.folders import folder_of_images
from ...data.rows import Row, as_stored, image_name, read_item, stored_type, undecoded, unformatted
from ...data.shards import Shards

SPREAD = 64  # the number of files or row groups over which a limited number of rows is spread
BatchKey = tuple[int, int]  # the numbers of the file and of the batch in it
RowT = TypeVar("RowT", bound=Row, covariant=True)


class SplitRows(ABC, Generic[RowT]):
    """The rows of one split: undecoded images, each with the values of other columns.

    A subclass says which columns these are, and makes a row of their values.

    Args:
        dataset: A `datasets` dataset, or anything with a length and items that are dicts or tuples.
        image_column: The column with the images, found by its type or name by default.
        limit: The number of images to use, all by default. They are a random sample; those of a stream are spread over
            it. A stream in fewer than 64 files or row groups, each of which may hold few of the classes, is read once
            to draw the sample: its other columns only, where its format allows that. Of a stream without an end, the
            sample is drawn from the first 64 times as many rows.
        seed: The seed of the random sample.
        name: What messages and records call the split.
        max_image_pixels: The largest width times height of an image that is decoded.

    Attributes:
        image_column: The column with the images; None if the items are tuples.
        value_columns: The other columns that are read.

    Raises:
        ValueError: For columns that are missing or not clear, or no rows at all.
    """

    def __init__(
        self,
        dataset: Any,
        image_column: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        name: str = "train",
        max_image_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        import datasets

        self.name, self.limit, self.max_image_pixels = name, limit, max_image_pixels
        self.source = dataset  # as it was given, to tell two splits of one dataset
        self._counted: int | None = None
        self._kept: list[frozenset[int]] | None = None  # by shard, the rows of a stream's sample or part
        self.is_stream = isinstance(dataset, datasets.IterableDataset)
        if not self.is_stream and not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise ValueError(f"The type {type(dataset).__name__} is not a dataset: give one with a length and items.")
        if not self.is_stream and len(dataset) == 0:
            raise ValueError(f"The {name} split is empty: give one with at least one image.")
        dataset = unformatted(dataset) if self.is_stream else dataset
        self.image_column = self._find_image_column(dataset, image_column)
        self.folder = folder_of_images(dataset)
        self.value_columns = self._find_columns(dataset)
        self.dtype = stored_type(dataset, self.image_column)
        self.dataset = dataset = undecoded(dataset, [self.image_column, *self.value_columns])
        if self.is_stream:
            self.shards = Shards(dataset, enough=0 if limit is None else SPREAD)
            if limit is None and self.shards.endless:
                raise ValueError(
                    f"The {name} split repeats without end: leave out .repeat(), or set the number of images to use "
                    "(--max_train_images, --max_test_images)."
                )
        else:
            self.indices: Sequence[int] = range(len(dataset))
            if limit is not None and limit < len(dataset):
                chosen = np.random.default_rng(seed).choice(len(dataset), limit, replace=False)
                self.indices = np.sort(chosen).tolist()  # neighbours are read faster
        if next(self._all_rows(), None) is None:
            raise ValueError(f"The {name} split is empty: give one with at least one image.")
        if self.is_stream and limit is not None and self.shards.count < SPREAD:
            self._sample(limit, seed)

    @property
    def known_length(self) -> int | None:
        """The number of rows, including those that cannot be decoded; None for a stream that does not declare it."""
        if not self.is_stream:
            return len(self.indices)
        if self._counted is None:
            split = (self.dataset.info.splits or {}).get(str(self.dataset.split))
            if split is None or not split.num_examples or not self.shards.keeps_all_rows:
                return None
            self._counted = split.num_examples
        return self._limited(self._counted)

    def __len__(self) -> int:
        """Return the number of rows.

        A stream that does not declare it is read once to count them: without its images, where its format allows that.
        """
        if self.known_length is not None:
            return self.known_length
        self._counted = sum(self._lengths(self.limit))
        return self._limited(self._counted)

    def _lengths(self, enough: int | None) -> list[int]:
        """Count the rows of each shard of a stream, or no more than `enough` of all."""
        lengths: list[int] = []
        for shard in self._shards():
            rows = self.shards.rows(self.shards.open(shard), columns=self.value_columns or [self.image_column])
            lengths.append(sum(1 for _ in islice(rows, None if enough is None else enough - sum(lengths))))
        return lengths

    def _sample(self, limit: int, seed: int) -> None:
        """Keep a sample of the rows only: a random one of each of `limit` equal stretches.

        Where rows are sorted by class, every class gets its share. A stream that may have no end is sampled from its
        beginning.
        """
        lengths = self._lengths(SPREAD * limit if self.shards.may_be_endless else None)
        count = sum(lengths)
        limit = min(limit, count)
        stretches = np.arange(limit + 1) * count // limit
        self._keep(np.random.default_rng(seed).integers(stretches[:-1], stretches[1:]), lengths)

    def _keep(self, rows: np.ndarray, lengths: Sequence[int]) -> None:
        """Keep the rows with these numbers, which ascend, of a stream whose shards have these lengths."""
        starts = np.cumsum([0, *lengths])
        self._counted = len(rows)
        self._kept = [
            frozenset((rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start).tolist())
            for start, stop in zip(starts[:-1], starts[1:], strict=True)
        ]

    def labels(self) -> list[list[int | str]]:
        """Return by shard, in the order of the rows, the classes of which a hold-out takes the same share each.

        Without labels, all rows are alike.
        """
        return [[0] * length for length in (self._lengths(None) if self.is_stream else [len(self)])]

    def _find_image_column(self, dataset: Any, name: str | None) -> str | None:
        return find_image_column(dataset, name)

    @abstractmethod
    def _find_columns(self, dataset: Any) -> list[str | None]:
        """Return the columns that are read beside the images; None stands for an item of a tuple."""

    @abstractmethod
    def _row(self, name: str, image: Any, item: Any) -> RowT:
        """Make a row.

        Args:
            name: The row's name in messages.
            image: The undecoded image, or the `UndecodableImage` that the dataset raised instead.
            item: The item of the dataset, a dict or a tuple; None if the dataset could not give it.

        Raises:
            ValueError: For a value that is missing or of a wrong type.
        """

    def part(self, rows: np.ndarray, lengths: Sequence[int]) -> Self:
        """Return a split of some of the rows of one without a limit.

        Args:
            rows: The numbers of the rows, which ascend, in the order of the split.
            lengths: The number of rows of each shard.
        """
        part = copy.copy(self)
        if self.is_stream:
            part._keep(rows, lengths)
        else:
            part.indices = [self.indices[number] for number in rows.tolist()]
        return part

    def shares_rows_with(self, other: SplitRows[Any]) -> bool:
        """Whether both are of the same dataset object and have a row in common."""
        if self.source is not other.source:
            return False
        if not self.is_stream:
            return not {*self.indices}.isdisjoint(other.indices)
        if self._kept is None or other._kept is None:
            return True
        return any(not mine.isdisjoint(theirs) for mine, theirs in zip(self._kept, other._kept, strict=True))

    def _limited(self, count: int) -> int:
        return count if self.limit is None else min(count, self.limit)

    def batches(self, size: int, share: int = 0, shares: int = 1) -> Iterator[tuple[BatchKey, list[RowT]]]:
        """Iterate over one of `shares` disjoint sets of batches, with their keys.

        In the order of their keys, the batches of all sets together hold every row once. The batches are the same for
        any number of shares.

        Args:
            size: Rows of a batch; the last one of a file may have fewer.
            share: The number of this set, from 0.

        Raises:
            ValueError: For a label that is missing or not a class.
        """
        if not self.is_stream:
            for batch in range(share, -(-len(self.indices) // size), shares):
                part = self.indices[batch * size : (batch + 1) * size]
                yield (0, batch), [self._row_at(index) for index in part]
        elif self.limit is None and self.shards.count >= shares:
            for shard in range(share, self.shards.count, shares):
                for batch, rows in enumerate(_batched(self._shard_rows(shard), size)):
                    yield (shard, batch), rows
        else:
            # too few files for each set to have its own: every process reads all files, but decodes only its batches
            if self.limit is not None:
                groups = iter([self._spread_rows(self.limit) if self._kept is None else self._all_rows()])
            else:
                groups = map(self._shard_rows, self._shards())
            number = 0
            for shard, group in enumerate(groups):
                for batch, rows in enumerate(_batched(group, size)):
                    if number % shares == share:
                        yield (shard, batch), rows
                    number += 1

    def _shards(self) -> range:
        return range(self.shards.count)

    def _all_rows(self) -> Iterator[RowT]:
        if not self.is_stream:
            yield from map(self._row_at, self.indices)
        for shard in self._shards() if self.is_stream else ():
            yield from self._shard_rows(shard)

    def _row_at(self, index: int) -> RowT:
        item = read_item(self.dataset, index)
        if isinstance(item, UndecodableImage):
            return self._row(str(index), item, None)
        image = as_stored(image_of_item(item, self.image_column), self.dtype)
        return self._row(image_name(image, index, self.folder), image, item)

    def _shard_rows(self, shard: int, start: int = 0, columns: list[str | None] | None = None) -> Iterator[RowT]:
        kept = None if self._kept is None else self._kept[shard]
        rows = self.shards.rows(self.shards.open(shard), start, columns=columns)
        # no further than the last row that is kept: a stream may have no end
        for number, row in enumerate(islice(rows, None if kept is None else max(kept, default=-1) + 1), start):
            if kept is not None and number not in kept:
                continue
            yield self._row(f"{shard}:{number}", as_stored(row.get(self.image_column), self.dtype), row)

    def _spread_rows(self, limit: int) -> Iterator[RowT]:
        """Iterate over `limit` rows that are spread over the stream.

        Where rows are sorted by class, the first ones would be of one class, so every shard gives an equal share. As
        some may have fewer rows, there are further rounds, in which each shard gives the rows that follow those of the
        round before, twice as many every time.
        """
        shards = self._shards()
        order = np.random.default_rng(0).permutation(len(shards)).tolist()
        start, stop = 0, -(-limit // min(SPREAD, len(shards)))
        missing, more = limit, True
        while missing and more:
            more = False
            for shard in order:
                for row in islice(self._shard_rows(shard, start), min(missing, stop - start)):
                    yield row
                    missing, more = missing - 1, True
                if not missing:
                    return
            start, stop = stop, 3 * stop


def _batched(rows: Iterator[RowT], size: int) -> Iterator[list[RowT]]:
    while batch := list(islice(rows, size)):
        yield batch
