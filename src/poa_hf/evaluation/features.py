"""Frozen features: one vector per image from any vision model, of many sizes in one pass over the data."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..data.decoding import Pixels, UndecodableImage, open_image
from ..data.processor import decoding_of, prepared_images
from ..data.shards import refuse_split_stream
from ..data.workers import batch_loader, worker_share
from ..formatting import one_line
from .coinciding import ImageId, identify
from .labelled import BatchKey, LabelledImages, LabelledRow
from .processes import Processes

logger = logging.getLogger(__name__)

NAMED_BAD_ROWS = 10


def pooled_features(outputs: Any) -> Tensor:
    """Return one feature vector per image, (B, D).

    It is `pooler_output`, flattened, or the first token of `last_hidden_state` where a model has no pooler. Dinov2's
    pooler output is the normalised class token, Swin's the mean over the feature map, ResNet's of shape (B, D, 1, 1).

    Args:
        outputs: The output of a base model of transformers.

    Raises:
        ValueError: If the output has neither pooled features (B, D, ...) nor a sequence of tokens (B, N, D).
    """
    pooled = getattr(outputs, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)
    hidden = getattr(outputs, "last_hidden_state", None)
    if hidden is None or hidden.ndim != 3:
        raise ValueError("The model's output has no image features: pass the base model, without a task's head.")
    return hidden[:, 0]


def class_features(model: PreTrainedModel, pixel_values: Iterable[Tensor]) -> Tensor:
    """Return the features of all images in their order: (N, D) float32 on the CPU.

    The model runs in evaluation mode, on its device and in its precision, and is returned to its previous mode.

    Args:
        model: Any vision model of transformers, whole or extracted.
        pixel_values: Normalised batches (B, C, H, W) of any sizes. They are read once, so a generator is enough.

    Raises:
        ValueError: If there is no batch, or the model's output has no image features.

    Example:
        >>> from transformers import Dinov2Config, Dinov2Model
        >>> config = Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28)
        >>> class_features(Dinov2Model(config), [torch.rand(4, 3, 28, 28), torch.rand(1, 3, 28, 28)]).shape
        torch.Size([5, 32])
    """
    with evaluation_mode(model), torch.inference_mode():
        features = [
            pooled_features(model(pixel_values=batch.to(model.device, model.dtype))).float().cpu()
            for batch in pixel_values
        ]
    if not features:
        raise ValueError("There are no images to take features of: pass at least one batch of pixel values.")
    # Outside inference mode, so that the result may take part in a computation with gradients (a linear probe).
    return torch.cat(features)


def prepared_batch(processor: BaseImageProcessor, images: Sequence[Pixels]) -> Tensor:
    """Return decoded images as a model takes them: (B, C, H, W).

    Raises:
        ValueError: If the processor leaves the images in different sizes.
    """
    try:
        return prepared_images(processor, images)
    except ValueError as error:
        raise ValueError(
            f"The image processor cannot make a batch of the images ({one_line(error)}): use one that crops or pads "
            "them to one size."
        ) from error


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch a model to evaluation mode within the block; afterwards each module is in its previous mode again."""
    # each module's own flag: a frozen part may be in evaluation mode while the rest trains
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass
class ImageFeatures:
    """The result of a pass over a split.

    Args:
        features: By model, (N, D) float32 on the CPU, for the models that this process owns.
        labels: The labels of the N images that could be decoded, in the split's order.
        skipped: The number of images that could not be decoded.
        ids: What the N images are known by, in the same order.
    """

    features: dict[str, Tensor]
    labels: list[int | str]
    skipped: int
    ids: list[ImageId]


def image_features(
    models: Mapping[str, Callable[..., Any]],
    images: LabelledImages,
    processor: BaseImageProcessor,
    owners: Mapping[str, int],
    processes: Processes,
    batch_size: int = 64,
    num_workers: int = 0,
    bf16: bool = False,
    quiet: bool = False,
) -> ImageFeatures:
    """Compute the features of all images by all models. One process reads, decodes and prepares each image, once.

    A batch holds the same images whatever the number of processes, so the features do not depend on it either. Images
    that cannot be decoded are left out, with their labels, and named in a warning.

    Args:
        models: By name, functions from `pixel_values` (B, C, H, W) to a model's output.
        images: The split.
        processor: The image processor that makes `pixel_values` of the images.
        owners: By model, the rank of the process that gets its features.
        processes: The processes that share the work.
        batch_size: Images at a time, per process.
        num_workers: Processes that decode images, per process.
        bf16: Compute in bfloat16 (autocast).
        quiet: Do not warn of images that are left out, for example because an earlier pass did.

    Raises:
        ValueError: On all processes alike, for labels that are not classes, if no image can be decoded, if the
            processor leaves images in different sizes, or for features that are not finite.
    """
    refuse_split_stream(images.dataset, processes.count)
    share = _features_of_share(models, images, processor, processes, batch_size, num_workers, bf16)
    features, share.features = share.features, {}  # not sent to everyone with the rest
    shares = processes.from_all(share)
    for each in shares:
        if each.error:
            raise ValueError(each.error)
    bad_rows = [row for each in shares for row in each.bad_rows]
    # in the order of the split
    batches = sorted((key, labels) for each in shares for key, labels in each.labels.items())
    ids = {key: part for each in shares for key, part in each.ids.items()}
    if not batches:
        row, reason = bad_rows[0]
        raise ValueError(
            f"No image of the {images.name} split could be decoded (row {row}: {reason}): check that the image column "
            "holds images."
        )
    if processes.is_main and not quiet:
        _warn_of(bad_rows, images.name)
    places, start = {}, 0  # where in the split's features the rows of each batch belong
    for key, part in batches:
        places[key] = torch.arange(start, start + len(part))
        start += len(part)
    by_rank = [[places[key] for key in each.labels] for each in shares]
    owned = {}
    for name in models:
        rows = processes.gather_rows(features.pop(name), by_rank, owners[name])  # (N, D) at the owner
        if rows is not None:
            owned[name] = rows
    labels = [label for _, part in batches for label in part]
    return ImageFeatures(owned, labels, len(bad_rows), [image for key, _ in batches for image in ids[key]])


@dataclass
class _Share:
    """The part of a split that one process has computed.

    Args:
        features: By model, batch by batch: [(B, D), ...] on the CPU.
        labels: By the key of the batch, in the same order.
        ids: By the key of the batch, what its images are known by.
        bad_rows: The names of rows that could not be decoded, with the reason.
        error: The message of an error, if there was one, which all processes then raise.
    """

    features: dict[str, list[Tensor]]
    labels: dict[BatchKey, list[int | str]] = field(default_factory=dict)
    ids: dict[BatchKey, list[ImageId]] = field(default_factory=dict)
    bad_rows: list[tuple[str, str]] = field(default_factory=list)
    error: str | None = None


def _features_of_share(
    models: Mapping[str, Callable[..., Any]],
    images: LabelledImages,
    processor: BaseImageProcessor,
    processes: Processes,
    batch_size: int,
    num_workers: int,
    bf16: bool,
) -> _Share:
    share = _Share({name: [] for name in models})
    batches = _PreparedBatches(images, processor, batch_size, processes.rank, processes.count)
    hidden = None if processes.is_main else True  # None: hidden where the output is no terminal
    with tqdm(total=images.known_length, desc=images.name, unit="image", leave=False, disable=hidden) as progress:
        for batch in batch_loader(batches, num_workers):
            if batch.error is not None:
                share.error = batch.error
                return share
            share.bad_rows += batch.bad_rows
            if batch.pixel_values is not None:
                share.labels[batch.key], share.ids[batch.key] = batch.labels, batch.ids
                for name, features in _outputs(models, batch.pixel_values, processes.device, bf16):
                    if not features.isfinite().all():
                        reason = "its weights, or the prepared images, are broken"
                        share.error = f"Some features of {name} are not finite: {reason}."
                        return share
                    share.features[name].append(features)
            rows = (len(batch.labels) + len(batch.bad_rows)) * processes.count
            progress.update(min(rows, (progress.total or sys.maxsize) - progress.n))
    return share


@torch.no_grad()
def _outputs(
    models: Mapping[str, Callable[..., Any]], pixel_values: Tensor, device: torch.device, bf16: bool
) -> Iterator[tuple[str, Tensor]]:
    pixel_values = pixel_values.to(device, non_blocking=True)  # (B, C, H, W)
    for name, model in models.items():
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            features = pooled_features(model(pixel_values=pixel_values))  # (B, D)
        yield name, features.float().cpu()


@dataclass
class _PreparedBatch:
    """A batch of rows as a worker returns it.

    Args:
        key: The batch's place in the split.
        labels: The labels of the B images that could be decoded.
        ids: What these images are known by.
        pixel_values: (B, C, H, W); None if no image could be decoded.
        bad_rows: The names of the other rows, with the reason.
        error: What went wrong, if anything. The data loader would put the worker's traceback before the sentence of an
            exception.
    """

    key: BatchKey = (0, 0)
    labels: list[int | str] = field(default_factory=list)
    ids: list[ImageId] = field(default_factory=list)
    pixel_values: Tensor | None = None
    bad_rows: list[tuple[str, str]] = field(default_factory=list)
    error: str | None = None


class _PreparedBatches(IterableDataset[_PreparedBatch]):
    """Runs in each worker: reads its share of the batches, decodes and prepares their images."""

    def __init__(
        self, images: LabelledImages, processor: BaseImageProcessor, batch_size: int, rank: int, count: int
    ) -> None:
        self.images, self.processor, self.batch_size = images, processor, batch_size
        self.rank, self.count = rank, count

    def __iter__(self) -> Iterator[_PreparedBatch]:
        worker, workers = worker_share()
        try:
            share = self.rank * workers + worker
            for key, rows in self.images.batches(self.batch_size, share, self.count * workers):
                yield self._prepare(key, rows)
        except ValueError as error:
            yield _PreparedBatch(error=str(error))

    def _prepare(self, key: BatchKey, rows: list[LabelledRow]) -> _PreparedBatch:
        batch, decoded = _PreparedBatch(key), []
        decoding = decoding_of(self.processor)
        for row in rows:
            try:
                decoded.append(open_image(row.image, self.images.max_image_pixels, **decoding))
                batch.labels.append(row.label)
                batch.ids.append(identify(row.image, row.name, decoded[-1]))
            except UndecodableImage as error:
                batch.bad_rows.append((row.name, str(error)))
        if decoded:
            batch.pixel_values = prepared_batch(self.processor, decoded)
        return batch


def _warn_of(bad_rows: list[tuple[str, str]], split: str) -> None:
    for row, reason in bad_rows[:NAMED_BAD_ROWS]:
        logger.warning("Image %s of the %s split could not be decoded and is left out: %s.", row, split, reason)
    if len(bad_rows) > NAMED_BAD_ROWS:
        logger.warning("%d images of the %s split could not be decoded and are left out.", len(bad_rows), split)
