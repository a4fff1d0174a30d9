"""Mean and standard deviation of the channels of a dataset's images, with which crops are normalised."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from .crop_arguments import CropArguments
from .decoding import UndecodableImage, open_image
from .mixture import DatasetMixture
from .rows import IndexedImages, StreamedImages

MEASURED_IMAGES = 512
_MEASURED_VALUES = 2**29  # of large images, fewer are read
_SMALLEST_STD = 1 / 255  # of a channel that is the same everywhere


def measure_statistics(
    dataset: Any, num_channels: int, args: CropArguments | None = None, image_column: str | None = None
) -> tuple[list[float], list[float]]:
    """Measure mean and standard deviation of each channel on images from all over a dataset.

    They are those of all pixels, each image counting alike. The same dataset always gives the same numbers. Images that
    cannot be decoded are passed over.

    Args:
        dataset: A `datasets.IterableDataset`, or anything with a length and items.
        num_channels: The channels that the model takes.
        args: How images are decoded: `image_range` and `max_image_pixels`.
        image_column: The column with the images; found by its type or name if not given.

    Returns:
        `image_mean` and `image_std` of `CropArguments`, of pixels in 0..1.

    Raises:
        ValueError: If no image can be decoded.

    Example:
        >>> images = [np.full((4, 4, 5), value, dtype=np.uint8) for value in (51, 153)]
        >>> mean, std = measure_statistics(images, num_channels=5)
        >>> mean
        [0.4, 0.4, 0.4, 0.4, 0.4]
    """
    args = args or CropArguments()
    means, squares, reason, values = [], [], "there are none", 0
    for value in itertools.islice(_images_from_all_over(dataset, image_column, args), MEASURED_IMAGES):
        try:
            pixels = np.asarray(open_image(value, args.max_image_pixels, num_channels, args.image_range))
        except UndecodableImage as error:
            reason = str(error)
            continue
        levels = np.arange(256) / 255
        counts = [np.bincount(channel, minlength=256) for channel in pixels.reshape(-1, num_channels).T]
        shares = np.stack(counts) / (pixels.size / num_channels)  # (channels, 256)
        means.append(shares @ levels)
        squares.append(shares @ levels**2)
        values += pixels.size
        if values > _MEASURED_VALUES:
            break
    if not means:
        raise ValueError(
            f"The images' mean and standard deviation cannot be measured, because none of those tried can be decoded "
            f"({reason}): give image_mean and image_std, with {num_channels} numbers each, and check the data."
        )
    mean = np.mean(means, axis=0)
    std = np.sqrt(np.maximum(np.mean(squares, axis=0) - mean**2, 0))
    return [round(float(each), 4) for each in mean], [round(max(float(each), _SMALLEST_STD), 4) for each in std]


def _images_from_all_over(
    dataset: Any, column: str | None, args: CropArguments, count: int = MEASURED_IMAGES
) -> Iterator[Any]:
    if isinstance(dataset, DatasetMixture):
        for part, own, share in zip(dataset.datasets, dataset.image_columns, dataset.shares, strict=True):
            number = max(1, round(count * share))
            yield from itertools.islice(_images_from_all_over(part, own or column, args, number), number)
        return
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        indexed = IndexedImages(dataset, column)
        for index in np.unique(np.linspace(0, len(indexed) - 1, count).astype(int)):
            yield indexed.row(int(index)).image
        return
    streamed = StreamedImages(dataset, column, args)
    shards = [streamed.rows(streamed.open_shard(index)) for index in range(min(streamed.num_shards, 64))]
    while shards:
        for shard in list(shards):
            try:
                yield next(shard)
            except StopIteration:
                shards.remove(shard)
