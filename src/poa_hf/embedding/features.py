"""Batches of features: rows are read and decoded by workers, and the model runs once for images and patches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers.image_processing_utils import BaseImageProcessor

from ..data.decoding import Pixels, UndecodableImage, open_image
from ..data.processor import decoding_of
from ..data.workers import batch_loader
from ..evaluation.features import pooled_features, prepared_batch
from ..evaluation.opened import OpenedModel, opened, patches_of_output
from ..evaluation.subject import Subject
from ..formatting import one_line
from .rows import START, ImageRow, ImageRows, Position, batches_of


@dataclass
class Features:
    """Features of a batch.

    Args:
        images: float32 (B, D).
        patches: float32 (B, h, w, D'); None if they were not asked for.
    """

    images: np.ndarray
    patches: np.ndarray | None


class Embedder:
    """A model, ready to compute features.

    Args:
        run: The model or its sub-network.
        subject: Where it comes from.
        device: Where it computes.
        patches: Whether to return the features of patches as well.
        bf16: Compute in bfloat16 (autocast).
    """

    def __init__(self, run: OpenedModel, subject: Subject, device: torch.device, patches: bool, bf16: bool) -> None:
        self.run, self.subject, self.device, self.patches, self.bf16 = run, subject, device, patches, bf16

    def __call__(self, pixel_values: Tensor) -> Features:
        """Compute the features of images (B, C, H, W).

        Raises:
            ValueError: For features that are not finite.
        """
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.run(pixel_values)
            images = pooled_features(output).float().cpu()
            patches = patches_of_output(self.run, output, pixel_values).float().cpu() if self.patches else None
        if not all(values.isfinite().all() for values in (images, patches) if values is not None):
            raise ValueError(
                f"Some features of {self.subject.name} are not finite: its weights, or the prepared images, are broken."
            )
        return Features(images.numpy(), None if patches is None else patches.numpy())

    def try_out(self) -> Features:
        """Compute the features of a black image, which show their shapes.

        Raises:
            ValueError: If the model gives no features of what its image processor makes.
        """
        decoding = decoding_of(self.subject.processor)
        black = open_image(np.zeros((64, 64, decoding["num_channels"]), dtype=np.uint8), **decoding)
        pixel_values = prepared_batch(self.subject.processor, [black])
        try:
            return self(pixel_values)
        except (TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ValueError(
                f"{self.subject.name} gives no features of images ({one_line(error)}): use a vision model."
            ) from error

    def of_images(self, images: list[Pixels]) -> Features:
        """Compute the features of images that `open_image` returned."""
        return self(prepared_batch(self.subject.processor, images))


@contextmanager
def embedder(
    subject: Subject, size: str | None, device: torch.device, patches: bool = False, bf16: bool = False
) -> Iterator[Embedder]:
    """Open a model for features within the block. Afterwards it is as it was, but for its device.

    Args:
        subject: The model and its image processor.
        size: The size of an elastic model; None for a model of one size.
        device: Where to compute.
        patches: Whether to compute the features of patches as well.
        bf16: Compute in bfloat16 (autocast).
    """
    subject.model.to(device)  # type: ignore[arg-type]  # its decorators hide the signature
    with opened(subject.model, size) as run:
        yield Embedder(run, subject, device, patches, bf16)


@dataclass
class Turn:
    """Rows of a part that are decoded together.

    Args:
        part: The number of the part.
        rows: The rows of a stream, or the numbers of rows that a worker then reads.
        is_last: Whether the part is known to end with them.
        after: Where a stream goes on after them.
    """

    part: int
    rows: list[Any]
    is_last: bool
    after: Position | None = None


@dataclass
class Decoded:
    """The images of a turn, prepared for the model.

    Args:
        turn: The turn, without its rows.
        rows: The rows whose images could be decoded, without the images.
        pixel_values: (B, C, H, W); None if no image could be decoded.
        skipped: Number, name and reason of each other row.
        error: What went wrong, if anything. The data loader would put the worker's traceback before the sentence of an
            exception.
    """

    turn: Turn
    rows: list[ImageRow] = field(default_factory=list)
    pixel_values: Tensor | None = None
    skipped: list[list[Any]] = field(default_factory=list)
    error: str | None = None


def turns(
    images: ImageRows, rows_per_shard: int, batch_size: int, done: dict[int, Position | None], rank: int, processes: int
) -> Iterator[Turn]:
    """Divide the parts that one process has to write into batches.

    A part is always the same rows, and a batch of it too, so the features do not depend on the number of processes or
    on where a run was stopped.

    Args:
        images: The rows.
        rows_per_shard: The rows of a part.
        batch_size: The rows of a batch.
        done: The parts that are written already, each with the position after it in a stream.
        rank: The number of this process, from 0.
        processes: The number of processes.
    """
    if images.is_stream:
        yield from _turns_of_stream(images, rows_per_shard, batch_size, done, rank, processes)
        return
    length = images.known_length or 0
    for part in range(rank, -(-length // rows_per_shard), processes):
        rows = range(part * rows_per_shard, min((part + 1) * rows_per_shard, length))
        if part not in done:
            yield from (Turn(part, batch, batch[-1] == rows[-1]) for batch in batches_of(iter(rows), batch_size))


def _turns_of_stream(
    images: ImageRows, rows_per_shard: int, batch_size: int, done: dict[int, Position | None], rank: int, processes: int
) -> Iterator[Turn]:
    first = next(part for part in count() if part not in done)
    rows = images.stream((done[first - 1] if first else None) or START)
    for part in count(first):
        is_mine, read = part % processes == rank and part not in done, 0
        for batch in batches_of(islice(rows, rows_per_shard), batch_size):
            read += len(batch)
            if is_mine:
                yield Turn(part, [row for row, _ in batch], read == rows_per_shard, batch[-1][1])
        if not read:
            return


def decoded_batches(
    images: ImageRows, processor: BaseImageProcessor, wanted: Iterator[Turn], num_workers: int
) -> Iterator[Decoded]:
    """Decode and prepare the images of turns, in their order.

    Args:
        images: The rows.
        processor: The image processor of the model.
        wanted: The turns, which this process reads from a stream.
        num_workers: Processes that decode.

    Raises:
        ValueError: For rows that cannot be read, labels of several kinds, or images of several sizes.
    """
    for batch in batch_loader(_DecodedTurns(images, processor), num_workers, turns=wanted):
        if batch.error is not None:
            raise ValueError(batch.error)
        yield batch


class _DecodedTurns(Dataset[Decoded]):
    """Runs in each worker."""

    def __init__(self, images: ImageRows, processor: BaseImageProcessor) -> None:
        self.images, self.processor = images, processor
        self.decoding = decoding_of(processor)

    def __getitem__(self, turn: Any) -> Decoded:
        batch = Decoded(replace(turn, rows=[]))
        try:
            self._decode(turn, batch)
        except ValueError as error:
            batch.error = str(error)
        return batch

    def _decode(self, turn: Turn, batch: Decoded) -> None:
        decoded = []
        for given in turn.rows:
            row = given if isinstance(given, ImageRow) else self.images.row(given)
            try:
                decoded.append(open_image(row.image, self.images.max_image_pixels, **self.decoding))
            except UndecodableImage as error:
                batch.skipped.append([row.index, row.name, str(error)])
                continue
            batch.rows.append(ImageRow(row.name, None, row.index, row.path, row.label))
        if decoded:
            batch.pixel_values = prepared_batch(self.processor, decoded)
