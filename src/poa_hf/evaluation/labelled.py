"""Images with labels: finding the columns, reading them in batches that any number of processes can share.

A batch is a run of consecutive rows, cut at the ends of files, and is made by one process or worker alone. So what a
batch holds does not depend on how many of them there are.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ..data.decoding import UndecodableImage
from ..data.rows import Row, read_item, undecoded
from ..data.sources import find_image_column, image_of_item

# Of datasets that declare no classes; WebDataset names fields by file extension.
LABEL_COLUMNS = ("label", "labels", "cls", "class", "target")
SPREAD = 64  # files or row groups over which a limited number of rows is spread


class UnlabelledImage(ValueError):
    """A row holds no label, as in the test split of a contest."""


@dataclass(frozen=True)
class LabelledRow(Row):
    """An undecoded image with its label; 0 where the image is the `UndecodableImage` that the dataset raised."""

    label: int | str


LabelledBatch = tuple[tuple[int, int], list[LabelledRow]]  # ((file, batch), rows)


def find_label_column(dataset: Any, name: str | None = None) -> str | None:
    """The name of the column that holds the classes; None if the dataset's items are (image, label) tuples.

    Looks for a column of type `datasets.ClassLabel`, and at common names where there is none. `name` is what the user
    asked for, if anything.

    Raises ValueError, listing the columns, when there is no such column, several could be meant, or its type is no
    class: labels are `ClassLabel`, whole numbers or strings, one per image.
    """
    import datasets

    features, columns = getattr(dataset, "features", None), getattr(dataset, "column_names", None)
    if not columns:
        first = next(iter(dataset))
        if not isinstance(first, dict):
            if isinstance(first, tuple | list) and len(first) > 1:
                return None
            raise ValueError("The dataset's items have no labels: give (image, label) items or a label column.")
        columns = list(first)
    listed = ", ".join(columns)
    if name is None:
        found = [c for c in columns if features and isinstance(features[c], datasets.ClassLabel)]
        found = found or [column for column in columns if column in LABEL_COLUMNS]
        if len(found) != 1:
            which = f"several label columns ({', '.join(found)}; all" if found else "no label column (its"
            raise ValueError(f"The dataset has {which} columns: {listed}): pass --label_column with the one to use.")
        name = found[0]
    elif name not in columns:
        near = difflib.get_close_matches(name, columns, n=1, cutoff=0)[0]
        raise ValueError(
            f"The dataset has no column {name!r} (did you mean {near!r}?): pass --label_column with one of {listed}."
        )
    feature = features[name] if features else None
    if feature is not None and not isinstance(feature, datasets.ClassLabel):
        kind = getattr(feature, "dtype", None) if isinstance(feature, datasets.Value) else type(feature).__name__
        if not str(kind).startswith(("int", "uint", "string", "large_string", "bool")):
            raise ValueError(f"The column {name!r} is of type {kind}, but labels are whole numbers or strings.")
    return name


class LabelledImages:
    """The rows of one split: undecoded images with their labels.

    Args:
        dataset: a `datasets` dataset, or anything with a length and items that are dicts or (image, label) tuples.
        limit: how many images to use: of data with an index a random sample by `seed`, of a stream rows spread over its
            files. None for all.
        name: of the split, for messages.

    Raises:
        ValueError: for columns that are missing or not clear, labels of a wrong type, or no rows at all.
        UnlabelledImage: if the first row has no label.
    """

    def __init__(
        self,
        dataset: Any,
        image_column: str | None = None,
        label_column: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        name: str = "train",
    ):
        import datasets

        self.name, self.limit = name, limit
        self._counted: int | None = None
        self.is_stream = isinstance(dataset, datasets.IterableDataset)
        if not self.is_stream and not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise ValueError(f"A {type(dataset).__name__} is no dataset: give one with a length and items.")
        if not self.is_stream and len(dataset) == 0:
            raise ValueError(f"The {name} split is empty: give one with at least one image.")
        self.image_column = find_image_column(dataset, image_column)
        self.label_column = find_label_column(dataset, label_column)
        feature = (getattr(dataset, "features", None) or {}).get(self.label_column)
        self.class_names: list[str] | None = getattr(feature, "names", None)
        self.dataset = dataset = undecoded(dataset, [self.image_column, self.label_column])
        if self.is_stream:
            if limit is not None and dataset.num_shards < SPREAD:
                self.dataset = dataset.reshard()
        else:
            self.indices: Any = range(len(dataset))
            if limit is not None and limit < len(dataset):
                chosen = np.random.default_rng(seed).choice(len(dataset), limit, replace=False)
                self.indices = np.sort(chosen).tolist()  # sorted, as neighbours are read faster
        if next(self._all_rows(), None) is None:
            raise ValueError(f"The {name} split is empty: give one with at least one image.")

    @property
    def known_length(self) -> int | None:
        """How many rows there are, undecodable ones included; None for a stream that does not say so."""
        if not self.is_stream:
            return len(self.indices)
        if self._counted is None:
            split = (self.dataset.info.splits or {}).get(str(self.dataset.split))
            if split is None or not split.num_examples:
                return None
            self._counted = split.num_examples
        return self._counted if self.limit is None else min(self._counted, self.limit)

    def __len__(self) -> int:
        """As `known_length`; a stream that does not say so is read for it once, of most formats the labels alone."""
        if self.known_length is None:
            labels = self.dataset.select_columns([self.label_column])
            self._counted = 0
            for batch in labels.iter(batch_size=1000):
                self._counted += len(batch[self.label_column])
                if self.limit is not None and self._counted >= self.limit:
                    break
        return self.known_length

    def batches(self, size: int, share: int = 0, shares: int = 1) -> Iterator[LabelledBatch]:
        """One of `shares` disjoint sets of batches, as ((file, batch), rows); in the order of these pairs, all sets
        together hold every row once, and the same batches for any number of shares.

        Raises:
            ValueError: for a label that is no class, or missing.
        """
        if not self.is_stream:
            for batch in range(share, -(-len(self.indices) // size), shares):
                part = self.indices[batch * size : (batch + 1) * size]
                yield (0, batch), [self._row_at(index) for index in part]
        elif self.limit is None and self.dataset.num_shards >= shares:
            for shard in range(share, self.dataset.num_shards, shares):
                for batch, rows in enumerate(_batched(self._shard_rows(shard), size)):
                    yield (shard, batch), rows
        else:
            # too few files for each to have its own: all are read by everyone, and decoded by one
            groups = [self._spread_rows()] if self.limit is not None else map(self._shard_rows, self._shards())
            number = 0
            for shard, rows in enumerate(groups):
                for batch, part in enumerate(_batched(rows, size)):
                    if number % shares == share:
                        yield (shard, batch), part
                    number += 1

    def _shards(self) -> range:
        return range(self.dataset.num_shards)

    def _all_rows(self) -> Iterator[LabelledRow]:
        if not self.is_stream:
            yield from map(self._row_at, self.indices)
        for shard in self._shards() if self.is_stream else ():
            yield from self._shard_rows(shard)

    def _row_at(self, index: int) -> Row:
        item = read_item(self.dataset, index)
        if isinstance(item, UndecodableImage):
            return LabelledRow(str(index), item, 0)
        value = item[1] if self.label_column is None else item.get(self.label_column)
        return LabelledRow(str(index), image_of_item(item, self.image_column), self._label(value, str(index)))

    def _shard_rows(self, shard: int, start: int = 0) -> Iterator[LabelledRow]:
        rows = self.dataset.shard(self.dataset.num_shards, shard)
        # Not iter(rows): in a worker process that would split the file among the workers once more.
        for number, row in enumerate((rows.skip(start) if start else rows).iter(batch_size=1), start):
            name = f"{shard}:{number}"
            image, label = (row.get(column, [None])[0] for column in (self.image_column, self.label_column))
            yield LabelledRow(name, image, self._label(label, name))

    def _spread_rows(self) -> Iterator[LabelledRow]:
        """`limit` rows from all over the stream: where rows are sorted by class, the first ones would say nothing."""
        shards = self._shards()
        # a file is not always as long as its share: then rounds of ever larger shares, each behind the last one
        start, stop, found, left = 0, -(-self.limit // min(SPREAD, len(shards))), True, self.limit
        spread = np.random.default_rng(0).permutation(len(shards)).tolist()
        while left and found:
            found = False
            for shard in spread:
                for row in islice(self._shard_rows(shard, start), min(left, stop - start)):
                    yield row
                    left, found = left - 1, True
                if not left:
                    return
            start, stop = stop, 3 * stop

    def _label(self, value: Any, row: str) -> int | str:
        if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
            value = value.item()  # a number of NumPy or torch
        if value is None or (isinstance(value, int) and value < 0):
            raise UnlabelledImage(f"Row {row} of the {self.name} split has no label ({value}): give a labelled split.")
        if not isinstance(value, int | str):
            raise ValueError(
                f"Row {row} of the {self.name} split has the label {str(value)[:40]} of type {type(value).__name__}, "
                "but labels are whole numbers or strings: pass --label_column with another column."
            )
        return int(value) if isinstance(value, bool) else value


def _batched(rows: Iterator[LabelledRow], size: int) -> Iterator[list[LabelledRow]]:
    while batch := list(islice(rows, size)):
        yield batch
