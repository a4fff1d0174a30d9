"""Batches of a split as workers make them: read, decoded, altered if a task asks for it, and prepared for the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor

from ...data.decoding import Pixels, UndecodableImage, open_image
from ...data.processor import decoding_of, resized_images, scaled_images
from ..alterations.alteration import AlteredSplit, ImageAlteration
from ..data.coinciding import ImageId, identify
from ..data.split_rows import BatchKey
from ..features import prepared_batch
from ..labelled import LabelledImages, LabelledRow
from ..passes import Batch, Batches


@dataclass
class PreparedBatch(Batch):
    """A batch of rows as a worker returns it, or the altered images of the batch that it returned before.

    Args:
        labels: The labels of the B images that could be decoded.
        ids: What these images are known by.
        pixel_values: (B, C, H, W); None if no image could be decoded.
        alteration: How the images were altered; None for the images themselves. Labels, ids and bad rows are those of
            the batch that came before.
        kept: For each altered image, whether the alteration did not leave it out.
    """

    labels: list[int | str] = field(default_factory=list)
    ids: list[ImageId] = field(default_factory=list)
    pixel_values: Tensor | None = None
    alteration: ImageAlteration | None = None
    kept: list[bool] = field(default_factory=list)

    @property
    def decoded(self) -> int:
        return len(self.labels)


class PreparedBatches(Batches[LabelledRow, PreparedBatch]):
    """Runs in each worker: reads its share of the batches, and decodes, alters and prepares their images.

    Each batch is followed by its altered images, one alteration at a time: all at once could need many times its
    memory.

    Args:
        images: The split.
        processor: The image processor that makes `pixel_values` of the images.
        batch_size: Images at a time.
        rank: The number of this process, from 0.
        count: The number of processes that share the split.
        alterations: How the images are altered.
    """

    def __init__(
        self,
        images: LabelledImages,
        processor: BaseImageProcessor,
        batch_size: int,
        rank: int,
        count: int,
        alterations: Sequence[ImageAlteration] = (),
    ) -> None:
        super().__init__(images, PreparedBatch, batch_size, rank, count)
        self.processor = processor
        split = AlteredSplit(images, decoding_of(processor))
        self.alterations = [alteration.ready(split) for alteration in alterations]

    def _prepare(self, key: BatchKey, rows: Sequence[LabelledRow]) -> Iterator[PreparedBatch]:
        batch, decoded, read = PreparedBatch(key), [], []
        decoding = decoding_of(self.processor)
        for row in rows:
            try:
                decoded.append(open_image(row.image, self.images.max_image_pixels, **decoding))
            except UndecodableImage as error:
                batch.bad_rows.append((row.name, str(error)))
                continue
            read.append(row)
            batch.labels.append(row.label)
            batch.ids.append(identify(row.image, row.name, decoded[-1]))
        if decoded:
            batch.pixel_values = prepared_batch(self.processor, decoded)
        yield batch
        if batch.pixel_values is None:
            return
        needs_resized = any(alteration.resized for alteration in self.alterations)
        resized = self._resized(decoded, batch.pixel_values) if needs_resized else []
        for alteration in self.alterations:
            images = resized if alteration.resized else decoded
            yield self._altered(key, alteration, images, read, batch.ids)

    def _resized(self, images: Sequence[Pixels], pixel_values: Tensor) -> list[Pixels]:
        """Return the images as the model sees them.

        Raises:
            ValueError: If the processor does more than resize, crop and scale, so that they cannot be had.
        """
        resized = resized_images(self.processor, images)
        if not torch.allclose(scaled_images(self.processor, resized), pixel_values, rtol=0, atol=1e-3):
            raise ValueError(
                f"{type(self.processor).__name__} does more than resize, crop and scale images, so they cannot be "
                "corrupted in the size that the model sees: leave the task corruptions out."
            )
        return resized

    def _altered(
        self,
        key: BatchKey,
        alteration: ImageAlteration,
        images: Sequence[Pixels],
        rows: Sequence[LabelledRow],
        ids: Sequence[ImageId],
    ) -> PreparedBatch:
        altered = [
            alteration.alter(image, row, image_id.hash) for image, row, image_id in zip(images, rows, ids, strict=True)
        ]
        kept = [image is not None for image in altered]
        filled = [original if image is None else image for image, original in zip(altered, images, strict=True)]
        prepare = scaled_images if alteration.resized or alteration.fits else prepared_batch
        return PreparedBatch(key, pixel_values=prepare(self.processor, filled), alteration=alteration, kept=kept)
