"""Batches of images with values of their pixels, as workers make them: read, decoded, checked and resized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers.image_processing_utils import BaseImageProcessor

from ...data.decoding import Pixels, UndecodableImage, open_image, oriented_size
from ...data.processor import decoding_of, prepared_images
from ..data.coinciding import identify
from ..data.split_rows import BatchKey
from ..passes import Batch, Batches
from ..tasks.dense_task import DenseTask, Example
from .images import DenseImages, DenseRow
from .maps import input_size, resampling_of, resized
from .pixel_values import check_same_size, compact

Reader = Callable[[Any, int], np.ndarray]  # from what a row holds and the largest number of pixels
# The images have their size already.
AS_IT_IS = {"do_resize": False, "do_center_crop": False}


@dataclass
class ExampleBatch(Batch):
    """A batch of rows as a worker returns it.

    Args:
        examples: The images that could be decoded.
    """

    examples: list[Example] = field(default_factory=list)

    @property
    def decoded(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class Preparation:
    """How images become examples.

    Args:
        processor: The image processor of the model. The images are resized here; it scales their values.
        side: The short side of the images that the model gets, in pixels.
        stride: The side of a patch.
        readers: By kind of values, the function that reads them.
        tasks: The tasks, which may want further views of the images.
        options: Their options.
    """

    processor: BaseImageProcessor
    side: int
    stride: int
    readers: Mapping[str, Reader]
    tasks: Sequence[DenseTask[Any]]
    options: Any

    def example(self, row: DenseRow, max_pixels: int) -> Example:
        """Decode and prepare a row.

        Raises:
            UndecodableImage: If the image or a value cannot be decoded.
            ValueError: For values that are not valid, or of another size than the image.
        """
        image = open_image(row.image, max_pixels, **decoding_of(self.processor))
        values = {kind: self._values(kind, row, image, max_pixels) for kind in row.values}
        height, width = input_size(*oriented_size(image), self.side, self.stride)
        if height * width > max_pixels:
            raise ValueError(
                f"would be enlarged to {width} x {height} pixels, more than --max_image_pixels ({max_pixels}): give a "
                "smaller --dense_image_size"
            )
        image_id = identify(row.image, row.name, image)
        image = resized(image, height, width, resampling_of(self.processor))
        pixel_values = prepared_images(self.processor, [image], **AS_IT_IS)[0]
        example = Example(row.name, image_id, pixel_values, values)
        for task in self.tasks:
            view = task.view(image, example.generator(self.options.seed), self.options)
            if view is not None:
                example.views[task.name] = prepared_images(self.processor, [view[0]], **AS_IT_IS)[0]
                example.geometry[task.name] = view[1]
        return example

    def _values(self, kind: str, row: DenseRow, image: Pixels, max_pixels: int) -> np.ndarray:
        try:
            values = self.readers[kind](row.values[kind], max_pixels)
        except UndecodableImage as error:
            raise UndecodableImage(f"its {kind}: {error}") from error
        check_same_size(kind, values, *oriented_size(image))
        return compact(values)


class ExampleBatches(Batches[DenseRow, ExampleBatch]):
    """Runs in each worker: reads its share of the batches and prepares their images.

    Args:
        images: The split.
        preparation: How they are prepared.
        batch_size: Images at a time.
        rank: The number of this process, from 0.
        count: The number of processes that share the split.
    """

    def __init__(self, images: DenseImages, preparation: Preparation, batch_size: int, rank: int, count: int) -> None:
        super().__init__(images, ExampleBatch, batch_size, rank, count)
        self.preparation = preparation

    def _prepare(self, key: BatchKey, rows: Sequence[DenseRow]) -> Iterator[ExampleBatch]:
        batch = ExampleBatch(key)
        for row in rows:
            try:
                batch.examples.append(self.preparation.example(row, self.images.max_image_pixels))
            except UndecodableImage as error:
                batch.bad_rows.append((row.name, str(error)))
            except ValueError as error:
                raise ValueError(row_error(row.name, self.images.name, error)) from error
        yield batch


def row_error(row: str, split: str, error: ValueError) -> str:
    """Return the sentence about a row whose values are not valid."""
    return f"Row {row} of the {split} split {error}."
