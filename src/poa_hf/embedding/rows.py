"""The rows of a dataset in its own order: undecoded images with their numbers, paths and, if asked for, labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from PIL import Image

from ..data.crop_arguments import MAX_IMAGE_PIXELS
from ..data.decoding import UndecodableImage, open_image
from ..data.folders import folder_of_images, path_in_folder
from ..data.rows import Row, as_stored, image_name, read_item, stored_type, undecoded, unformatted
from ..data.shards import Shards
from ..data.sources import find_image_column, image_of_item
from ..evaluation.data.label_column import find_label_column

Position = tuple[int, int, int]  # of the next row of a stream: its number, the shard it is in, and its place there
START: Position = (0, 0, 0)
LARGEST_LABEL = 2**63 - 1  # of int64, which files of embeddings hold


@dataclass(frozen=True)
class ImageRow(Row):
    """An undecoded image with what is known of it.

    Args:
        index: The number of the row in the dataset's order.
        path: The path of the image, relative to its folder where that is known; None if it has none.
        label: Its label; None where there is none.
    """

    index: int
    path: str | None
    label: int | str | None = None


class ImageRows:
    """The rows of a dataset, by number if it can be indexed, else one after the other.

    Args:
        dataset: A `datasets` dataset, or anything with a length and items that are images, tuples or dicts.
        image_column: The column with the images, found by its type or name by default.
        label_column: The column with the labels; none are read by default.
        limit: The number of rows to use, from the first one on; all by default.
        max_image_pixels: The largest width times height of an image that is decoded.
        decoding: The arguments of `open_image` for the model.

    Raises:
        ValueError: For columns that are missing or not clear, or a dataset that is empty or without an end.
    """

    def __init__(
        self,
        dataset: Any,
        image_column: str | None = None,
        label_column: str | None = None,
        limit: int | None = None,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        decoding: dict[str, Any] | None = None,
    ) -> None:
        import datasets

        self.limit, self.max_image_pixels, self.decoding = limit, max_image_pixels, decoding or {}
        self.is_stream = isinstance(dataset, datasets.IterableDataset)
        _check_type(dataset, self.is_stream)
        dataset = unformatted(dataset) if self.is_stream else dataset
        self.image_column = find_image_column(dataset, image_column)
        self.has_labels = label_column is not None
        self.label_column = find_label_column(dataset, label_column) if self.has_labels else None
        feature = (getattr(dataset, "features", None) or {}).get(self.label_column)
        self.class_names: list[str] | None = getattr(feature, "names", None)
        self.folder = folder_of_images(dataset)
        self.dtype = stored_type(dataset, self.image_column)
        columns = [name for name in (self.image_column, self.label_column) if name is not None]
        self.dataset = dataset = undecoded(dataset, list(dict.fromkeys(columns)) or [None])
        if self.is_stream:
            self.shards = Shards(dataset, enough=0)
            if limit is None and self.shards.endless:
                raise ValueError("The dataset repeats without end: leave out .repeat(), or give --max_images.")
        first = next(iter(self.all_rows()), None)
        if first is None:
            raise ValueError("The dataset is empty: give one with at least one image.")
        self.first = first
        self.labels_are_text = self.has_labels and self._is_text(feature)

    @property
    def known_length(self) -> int | None:
        """The number of rows, including those that cannot be decoded; None for a stream that does not declare it."""
        if not self.is_stream:
            length: int | None = len(self.dataset)
        else:
            split = (self.dataset.info.splits or {}).get(str(self.dataset.split))
            length = split.num_examples if split is not None and self.shards.keeps_all_rows else None
        if not length:
            return None
        return length if self.limit is None else min(length, self.limit)

    def row(self, index: int) -> ImageRow:
        """Return one row of a dataset that can be indexed."""
        item = read_item(self.dataset, index)
        if isinstance(item, UndecodableImage):
            return ImageRow(str(index), item, index, None)
        label = None
        if self.has_labels:
            label = item[1] if self.label_column is None else item.get(self.label_column)
        return self._row(index, image_of_item(item, self.image_column), label)

    def stream(self, start: Position = START) -> Iterator[tuple[ImageRow, Position]]:
        """Iterate over the rows of a stream, each with the position of the next one."""
        index, first_shard, skipped = start
        for shard in range(first_shard, self.shards.count):
            rows = self.shards.rows(self.shards.open(shard), skipped)
            for place, item in enumerate(rows, skipped):
                if self.limit is not None and index >= self.limit:
                    return
                row = self._row(index, item.get(self.image_column), item.get(self.label_column))
                index += 1
                yield row, (index, shard, place + 1)
            skipped = 0

    def all_rows(self, start: Position = START) -> Iterator[ImageRow]:
        """Iterate over the rows from one on."""
        if self.is_stream:
            yield from (row for row, _ in self.stream(start))
        else:
            length = len(self.dataset) if self.limit is None else min(len(self.dataset), self.limit)
            yield from (self.row(index) for index in range(start[0], length))

    def _row(self, index: int, image: Any, label: Any) -> ImageRow:
        image = as_stored(image, self.dtype)
        name = image_name(image, index, self.folder)
        path = _path_of(image, self.folder)
        if self.is_stream and isinstance(image, Image.Image):  # its file does not follow it to another process
            try:
                image = open_image(image, self.max_image_pixels, **self.decoding)
            except UndecodableImage as error:
                image = error
        return ImageRow(name, image, index, path, self._label(label, name) if self.has_labels else None)

    def _label(self, value: Any, row: str) -> int | str | None:
        if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
            value = value.item()  # a number of NumPy or torch
        if value is None:
            return None
        if not isinstance(value, int | str):
            raise ValueError(
                f"Row {row} has the label {str(value)[:40]} of type {type(value).__name__}, but labels are whole "
                "numbers or strings: pass --label_column with another column."
            )
        label = int(value) if isinstance(value, bool) else value
        if isinstance(label, int) and not -LARGEST_LABEL <= label <= LARGEST_LABEL:
            raise ValueError(
                f"Row {row} has the label {str(label)[:40]}, but whole numbers are kept up to {LARGEST_LABEL}: pass "
                "--label_column with another column, or make the labels strings."
            )
        if getattr(self, "labels_are_text", isinstance(label, str)) != isinstance(label, str):
            raise ValueError(
                f"Row {row} has the label {str(value)[:40]!r}, but other labels are "
                f"{'strings' if self.labels_are_text else 'whole numbers'}: give a column with labels of one kind."
            )
        return label

    def _is_text(self, feature: Any) -> bool:
        if feature is not None:
            return "string" in str(getattr(feature, "dtype", "")) and self.class_names is None
        labelled = (row.label for row in islice(self.all_rows(), 1000))
        return isinstance(next((label for label in labelled if label is not None), None), str)


def _check_type(dataset: Any, is_stream: bool) -> None:
    import datasets

    if isinstance(dataset, datasets.DatasetDict | datasets.IterableDatasetDict):
        split = next(iter(dataset), "train")
        raise ValueError(f'The dataset has several splits: give one of them, such as dataset["{split}"].')
    if not is_stream and not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ValueError(
            f"The type {type(dataset).__name__} is not a dataset: give one with a length and items, or make a stream "
            "of its rows by datasets.IterableDataset.from_generator(lambda: ({'image': image} for image in images))."
        )


def batches_of(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Group rows by so many; the last group may have fewer."""
    for _ in count():
        if not (batch := list(islice(rows, size))):
            return
        yield batch


def _path_of(image: Any, folder: str | None) -> str | None:
    path = image.get("path") if isinstance(image, Mapping) else image
    if not isinstance(path, str | os.PathLike):
        return None
    return path_in_folder(os.fspath(path), folder).encode("utf-8", "replace").decode()
