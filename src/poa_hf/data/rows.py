"""Rows of a dataset, read but not decoded: by index, or shard by shard from a stream.

Follows `sources`, which opens the dataset, and `shards`, which divides a stream; `stream` says in which order the rows
are read, `decoding` makes images of them.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .columns import find_image_column, image_of_item
from .crop_arguments import CropArguments
from .decoding import UndecodableImage, open_image
from .errors import UnreadableData as UnreadableData
from .errors import reading_error
from .folders import folder_of_images, path_in_folder
from .shards import Shards


@dataclass(frozen=True)
class Row:
    """An undecoded image, with the name of its row in messages and logs.

    Args:
        name: The image's path, relative to its folder where that is known; else the row's index, or `shard:row` in a
            stream.
        image: What `decoding.open_image` takes, or the `UndecodableImage` that the dataset raised instead.
    """

    name: str
    image: Any


def image_name(image: Any, index: int, folder: str | None) -> str:
    """Return the path of an image that is a file, or else its index.

    Args:
        image: The undecoded image.
        index: Where it is in its dataset.
        folder: The folder of the dataset's images, to which the path is relative; None if it is not known.
    """
    path = image
    if isinstance(image, Mapping):
        # in a table, the path beside the bytes is only what the file was called once
        path = image.get("path") if folder is not None or image.get("bytes") is None else None
    return path_in_folder(os.fspath(path), folder) if isinstance(path, str | os.PathLike) else str(index)


def stored_type(dataset: Any, column: str | None) -> np.dtype | None:
    """Return the type of the numbers in a column of arrays (`Array2D`, `Array3D`); None for any other column."""
    import datasets

    feature = (getattr(dataset, "features", None) or {}).get(column)
    return np.dtype(feature.dtype) if isinstance(feature, datasets.Array2D | datasets.Array3D) else None


def as_stored(image: Any, dtype: np.dtype | None) -> Any:
    """Return an image of a column of arrays as an array: rows hold nested lists, which do not say their type."""
    return np.asarray(image, dtype) if dtype is not None and isinstance(image, list) else image


def undecoded(dataset: Any, columns: Sequence[str | None]) -> Any:
    """Select columns of a `datasets` dataset, with images as their bytes or paths.

    Anything else, and a dataset with a transform of the user's, is returned as it is.

    Args:
        dataset: A `datasets.Dataset` or `IterableDataset`, or any other collection.
        columns: Names of columns, the images' first.
    """
    import datasets

    if isinstance(dataset, datasets.IterableDataset):
        epoch = dataset.epoch
        if dataset.features:
            # Decoding ends first: `datasets` does not find it behind other steps.
            dataset = dataset.decode(False).select_columns(list(columns))
        dataset.set_epoch(epoch)
        return unformatted(dataset)  # whose steps decode no image that no function sees
    if isinstance(dataset, datasets.Dataset) and dataset.format["type"] != "custom":
        dataset = dataset.with_format(None).select_columns(list(columns))
        for column in columns:
            if isinstance(dataset.features[column], datasets.Image):
                dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def unformatted(stream: Any) -> Any:
    """Return a stream whose rows are dicts of Python objects, whatever format (`with_format`) it has.

    Its steps decode images as `decoding_steps` says.
    """
    from .decoding_steps import with_tolerant_steps

    plain = stream.with_format(None)
    plain._ex_iterable = with_tolerant_steps(stream._ex_iterable)
    plain.set_epoch(stream.epoch)
    return plain


def read_item(dataset: Any, index: int) -> Any:
    """Return `dataset[index]`, or an `UndecodableImage` if the dataset itself decodes images and fails.

    Raises:
        UnreadableData: For any other exception of the dataset, such as one of a transform.
    """
    try:
        return dataset[index]
    except (OSError, UndecodableImage) as error:
        return UndecodableImage(str(error))
    except Exception as error:
        raise reading_error(error) from error


class IndexedImages:
    """The undecoded images of a dataset whose rows can be read by index.

    Args:
        dataset: Anything with a length and items: images, tuples that begin with one, or dicts.
        column: The column with the images; found by its type or name if not given.

    Raises:
        ValueError: For an empty dataset, or an image column that is missing or ambiguous.
    """

    def __init__(self, dataset: Any, column: str | None = None):
        self.column = find_image_column(dataset, column)
        self.dataset, self.dtype = undecoded(dataset, [self.column]), stored_type(dataset, self.column)
        self.folder = folder_of_images(dataset)
        if len(dataset) == 0:
            raise ValueError("The dataset is empty: give one with at least one image.")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return as_stored(image_of_item(self.dataset[index], self.column), self.dtype)

    def row(self, index: int) -> Row:
        """Read one row; a dataset's own failure to decode it becomes the row's image."""
        image = as_stored(image_of_item(read_item(self.dataset, index), self.column), self.dtype)
        return Row(image_name(image, index, self.folder), image)


class StreamedImages:
    """The undecoded images of a `datasets.IterableDataset`, in `num_shards` shards that are read one by one.

    Args:
        dataset: The stream; see `shards.Shards`.
        column: The column with the images; found by its type or name if not given.
        args: How images are decoded; only their channels and the largest size matter here.

    Raises:
        ValueError: For a dataset without files, or an image column that is missing or ambiguous.
    """

    def __init__(self, dataset: Any, column: str | None = None, args: CropArguments | None = None):
        dataset = unformatted(dataset)
        self.column, self.args = find_image_column(dataset, column), args or CropArguments()
        self.dtype = stored_type(dataset, self.column)
        self.shards = Shards(undecoded(dataset, [self.column]))
        self.num_shards = self.shards.count
        if self.num_shards == 0:
            raise ValueError("The dataset has no files to read: give one with at least one image.")

    def open_shard(self, index: int) -> Any:
        """Return a shard as an iterable dataset, to be read by `rows`."""
        return self.shards.open(index)

    def rows(self, shard: Any, start: int = 0, state: dict | None = None) -> Generator[Any, None, None]:
        """Yield the undecoded images of a shard; None where a row lacks the image column.

        Args:
            shard: What `open_shard` returned.
            start: The number of rows to pass over.
            state: The shard's `state` at that row, if there is one.
        """
        for row in self.shards.rows(shard, start, state):
            image = as_stored(row.get(self.column), self.dtype)
            yield _without_file(image, self.args) if isinstance(image, Image.Image) else image

    def state(self, shard: Any) -> dict | None:
        """Return the state of a shard that is being read; None if it must be read from its start when resuming."""
        return self.shards.state(shard)


def _without_file(image: Image.Image, args: CropArguments) -> Any:
    """Return a Pillow image that can be sent to another process: upright, decoded, independent of its file."""
    try:
        return open_image(image, args.max_image_pixels, args.num_channels, args.image_range)
    except UndecodableImage as error:
        return error
