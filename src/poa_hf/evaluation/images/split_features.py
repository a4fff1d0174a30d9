"""The features of a split: of many sizes, and of altered images, in one pass that any number of processes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor

from ...data.shards import refuse_split_stream
from ..alterations.alteration import Alteration, AlteredFeatures, ImageAlteration, PixelAlteration, PixelBatch
from ..data.coinciding import ImageId
from ..data.split_rows import BatchKey
from ..features import pooled_features
from ..labelled import LabelledImages
from ..passes import Report, ids_in_order, reports_of_all, visit_share
from ..processes import Processes
from ..subject import Sizes
from .prepared import PreparedBatch, PreparedBatches

Model = Callable[..., Any]  # from `pixel_values` (B, C, H, W) to a model's output
Guide = Callable[[Tensor], Tensor]  # from `pixel_values` to the saliency (B, h, w) of patches


@dataclass
class ImageFeatures:
    """The result of a pass over a split.

    Args:
        features: By model, (N, D) float32 on the CPU, for the models that this process owns.
        labels: The labels of the N images that could be decoded, in the split's order.
        skipped: The number of images that could not be decoded.
        ids: What the N images are known by, in the same order.
        altered: By model, the features of the altered images by alteration.
    """

    features: dict[str, Tensor]
    labels: list[int | str]
    skipped: int
    ids: list[ImageId]
    altered: dict[str, dict[Alteration, AlteredFeatures]] = field(default_factory=dict)


def image_features(
    models: Mapping[str, Model],
    images: LabelledImages,
    processor: BaseImageProcessor,
    owners: Mapping[str, int],
    processes: Processes,
    batch_size: int = 64,
    num_workers: int = 0,
    bf16: bool = False,
    quiet: bool = False,
    alterations: Sequence[Alteration] = (),
    guide: Guide | None = None,
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
        alterations: How the images are altered, each for features by all models.
        guide: The function from `pixel_values` to the saliency of patches, for alterations that need it.

    Raises:
        ValueError: On all processes alike, for labels that are not classes, if no image can be decoded, if the
            processor leaves images in different sizes, for images that cannot be altered, or for features that are not
            finite.
    """
    refuse_split_stream(images.dataset, processes.count)
    share = _Share(models, alterations, guide, processes.device, bf16)
    decoded_here = [alteration for alteration in alterations if isinstance(alteration, ImageAlteration)]
    batches = PreparedBatches(images, processor, batch_size, processes.rank, processes.count, decoded_here)
    visit_share(batches, share.add, share.result, processes, num_workers)
    return _of_all_shares(share, images.name, owners, processes, quiet)


@dataclass
class _Result(Report):
    """What a process tells all others about the part of a split that it has computed.

    Args:
        labels: By the key of the batch.
        keys: By alteration, None for the images themselves, the keys of the batches in the order of their features.
        kept: By alteration and key, which images the alteration did not leave out.
    """

    labels: dict[BatchKey, list[int | str]] = field(default_factory=dict)
    keys: dict[Alteration | None, list[BatchKey]] = field(default_factory=dict)
    kept: dict[Alteration, dict[BatchKey, list[bool]]] = field(default_factory=dict)


class _Share:
    """Computes the features of the part of a split that falls to one process.

    Attributes:
        features: By alteration (None for the images themselves) and model, batch by batch: [(B, D), ...] on the CPU.
        result: All else.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        alterations: Sequence[Alteration],
        guide: Guide | None,
        device: torch.device,
        bf16: bool,
    ) -> None:
        self.models, self.guide, self.device, self.bf16 = models, guide, device, bf16
        self.of_pixels = [alteration for alteration in alterations if isinstance(alteration, PixelAlteration)]
        series: list[Alteration | None] = [None, *alterations]
        self.features: dict[tuple[Alteration | None, str], list[Tensor]] = {
            (alteration, name): [] for alteration in series for name in models
        }
        self.result = _Result(
            keys={alteration: [] for alteration in series}, kept={alteration: {} for alteration in alterations}
        )

    def add(self, batch: PreparedBatch) -> None:
        """Compute the features of a batch, and those of its images altered on the device.

        Raises:
            ValueError: For images that cannot be altered, and features that are not finite.
        """
        if batch.pixel_values is None:
            return
        pixel_values = batch.pixel_values.to(self.device, non_blocking=True)  # (B, C, H, W)
        self._compute(batch.key, pixel_values, batch.alteration)
        if batch.alteration is not None:
            self.result.kept[batch.alteration][batch.key] = batch.kept
            return
        self.result.labels[batch.key], self.result.ids[batch.key] = batch.labels, batch.ids
        prepared = PixelBatch(pixel_values, [image.hash for image in batch.ids], self.guide)
        for alteration in self.of_pixels:
            self._compute(batch.key, alteration.alter(prepared), alteration)
            self.result.kept[alteration][batch.key] = [True] * len(batch.labels)

    @torch.no_grad()
    def _compute(self, key: BatchKey, pixel_values: Tensor, alteration: Alteration | None) -> None:
        self.result.keys[alteration].append(key)
        outputs = _outputs(self.models, pixel_values)
        for _ in self.models:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                name, output = next(outputs)
                features = pooled_features(output).float().cpu()  # (B, D)
            if not features.isfinite().all():
                raise ValueError(
                    f"Some features of {name} are not finite: its weights, or the prepared images, are broken."
                )
            self.features[alteration, name].append(features)


def _outputs(models: Mapping[str, Model], pixel_values: Tensor) -> Iterator[tuple[str, Any]]:
    """Yield the output of each model; sizes of one model compute together what they have in common."""
    if isinstance(models, Sizes):
        yield from models.outputs(pixel_values)
        return
    for name, model in models.items():
        yield name, model(pixel_values=pixel_values)


def _of_all_shares(
    share: _Share, split: str, owners: Mapping[str, int], processes: Processes, quiet: bool
) -> ImageFeatures:
    """Put the shares of all processes together, in the order of the split."""
    results = reports_of_all(share.result, split, processes, quiet)
    ids = ids_in_order(results)
    by_batch = {key: part for each in results for key, part in each.labels.items()}
    labels = {key: by_batch[key] for key in ids}
    places, start = {}, 0  # where in the split's features the rows of each batch belong
    for key, part in labels.items():
        places[key] = torch.arange(start, start + len(part))
        start += len(part)
    owned: dict[str, Tensor] = {}
    altered: dict[str, dict[Alteration, AlteredFeatures]] = {}
    for alteration, name in list(share.features):
        by_rank = [[places[key] for key in each.keys[alteration]] for each in results]
        rows = processes.gather_rows(share.features.pop((alteration, name)), by_rank, owners[name])
        if rows is None:
            continue
        if alteration is None:
            owned[name] = rows  # (N, D)
            continue
        kept = {key: part for each in results for key, part in each.kept[alteration].items()}
        in_order = torch.tensor([value for key in labels for value in kept[key]], dtype=torch.bool)  # (N,)
        altered.setdefault(name, {})[alteration] = AlteredFeatures(rows, in_order)
    flat_labels = [label for part in labels.values() for label in part]
    flat_ids = [image for part in ids.values() for image in part]
    skipped = sum(len(each.bad_rows) for each in results)
    return ImageFeatures(owned, flat_labels, skipped, flat_ids, altered)
