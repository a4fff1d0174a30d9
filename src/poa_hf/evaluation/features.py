"""Frozen features: one vector per image, from any stock vision model; of many sizes in one pass over the data."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data.decoding import UndecodableImage, open_image
from ..data.workers import batch_loader, worker_share
from .labelled import LabelledImages
from .processes import Processes

logger = logging.getLogger(__name__)

NAMED_BAD_ROWS = 10


def pooled_features(outputs) -> Tensor:
    """The vector that stands for the image: `pooler_output` (B, D), or where a model has none, the first token.

    Dinov2's pooler output is the normalised class token, Swin's the mean over the feature map; ResNet's, of shape
    (B, D, 1, 1), is flattened.

    Raises:
        ValueError: where the output has neither (B, D, ...) pooled features nor a (B, N, D) sequence of tokens.
    """
    pooled = getattr(outputs, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)
    hidden = getattr(outputs, "last_hidden_state", None)
    if hidden is None or hidden.ndim != 3:
        raise ValueError("The model's output has no image features: pass the base model, without a task's head.")
    return hidden[:, 0]


def class_features(model: PreTrainedModel, pixel_values: Iterable[Tensor]) -> Tensor:
    """The features of all images, in their order: (N, D) float32 on the CPU.

    The model runs in evaluation mode on its own device and in its own precision, and gets its mode back.

    Args:
        model: any transformers vision model, whole or extracted.
        pixel_values: normalised batches (B, 3, height, width), of any sizes; read once, so a generator will do.

    Raises:
        ValueError: where there is no batch, or the model's output has no image features.
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


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout and the like within the block; afterwards each module is in its own mode again."""
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
    """What a pass over a split gives. `labels` belong to all images that could be decoded, in the split's order;
    `features`, (images, D) float32 on the CPU per model, are those that this process owns."""

    features: dict[str, Tensor]
    labels: list[int | str]
    skipped: int


def image_features(
    models: dict[str, Callable],
    images: LabelledImages,
    processor,
    owners: dict[str, int],
    processes: Processes,
    batch_size: int = 64,
    num_workers: int = 0,
    bf16: bool = False,
    quiet: bool = False,
) -> ImageFeatures:
    """Features of all images by all models: each image is read, decoded and prepared once, by one process.

    A batch holds the same images whatever the number of processes, so the features don't depend on it either. Images
    that can't be decoded are left out, with their labels, and named in a warning.

    Args:
        models: by name, what gives a model's output for `pixel_values` (B, 3, height, width).
        processor: the image processor that makes `pixel_values` of RGB images.
        owners: by name, the process that gets the features.
        bf16: compute in bfloat16 (autocast).
        quiet: don't warn of images that are left out, as a pass before has done it.

    Raises:
        ValueError: for labels that are no classes, if no image can be decoded, images that the processor leaves in
            different sizes, or features that are not finite; on all processes alike.
    """
    done = _own_batches(models, images, processor, processes, batch_size, num_workers, bf16)
    features = done.pop("features")
    reports = processes.from_all(done)
    for report in reports:
        if report["error"]:
            raise ValueError(report["error"])
    bad = [row for report in reports for row in report["bad"]]
    batches = sorted(batch for report in reports for batch in report["labels"].items())  # as the split has them
    if not batches:
        row, reason = bad[0]
        raise ValueError(
            f"No image of the {images.name} split could be decoded (row {row}: {reason}): check that the image column "
            "holds images."
        )
    if processes.is_main and not quiet:
        _report(bad, images.name)
    places, start = {}, 0
    for key, labels in batches:
        places[key] = torch.arange(start, start + len(labels))
        start += len(labels)
    by_rank = [[places[key] for key in report["labels"]] for report in reports]
    gathered = {name: processes.gather_rows(features.pop(name), by_rank, owners[name]) for name in models}
    owned = {name: rows for name, rows in gathered.items() if rows is not None}
    return ImageFeatures(owned, [label for _, labels in batches for label in labels], len(bad))


def _own_batches(
    models: dict[str, Callable],
    images: LabelledImages,
    processor,
    processes: Processes,
    batch_size: int,
    num_workers: int,
    bf16: bool,
) -> dict[str, Any]:
    """This process's share: `features` by model and `labels` by key, batch by batch; `bad` rows; an `error`, if any,
    which the other processes are waiting to hear of."""
    batches = _PreparedBatches(images, processor, batch_size, processes.rank, processes.count)
    loader = batch_loader(batches, num_workers)
    done = {"features": {name: [] for name in models}, "labels": {}, "bad": [], "error": None}
    shown = {"desc": images.name, "unit": "image", "leave": False, "disable": None if processes.is_main else True}
    with tqdm(total=images.known_length, **shown) as progress:
        for batch in loader:
            if "error" in batch:
                return done | {"error": batch["error"]}
            done["bad"] += batch["bad"]
            if batch["labels"]:
                done["labels"][batch["key"]] = batch["labels"]
                for name, features in _outputs(models, batch["pixel_values"], processes.device, bf16):
                    if not features.isfinite().all():
                        reason = "its weights, or the prepared images, are broken"
                        return done | {"error": f"Some features of {name} are not finite: {reason}."}
                    done["features"][name].append(features)
            rows = (len(batch["labels"]) + len(batch["bad"])) * processes.count
            progress.update(min(rows, (progress.total or sys.maxsize) - progress.n))
    return done


@torch.no_grad()
def _outputs(models: dict[str, Callable], pixel_values: Tensor, device: torch.device, bf16: bool) -> Iterator:
    pixel_values = pixel_values.to(device, non_blocking=True)
    for name, model in models.items():
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            features = pooled_features(model(pixel_values=pixel_values))
        yield name, features.float().cpu()


class _PreparedBatches(IterableDataset):
    """What runs in each worker: reads its share of the batches, decodes and prepares their images."""

    def __init__(self, images: LabelledImages, processor, batch_size: int, rank: int, count: int):
        self.images, self.processor, self.batch_size = images, processor, batch_size
        self.rank, self.count = rank, count

    def __iter__(self) -> Iterator[dict]:
        worker, workers = worker_share()
        try:
            share = self.rank * workers + worker
            for key, rows in self.images.batches(self.batch_size, share, self.count * workers):
                yield self._prepare(key, rows)
        except ValueError as error:
            # DataLoader would put the worker's whole traceback before the one sentence
            yield {"error": str(error)}

    def _prepare(self, key: tuple[int, int], rows: list) -> dict:
        decoded, labels, bad = [], [], []
        for row in rows:
            try:
                decoded.append(open_image(row.image))
                labels.append(row.label)
            except UndecodableImage as error:
                bad.append((row.name, str(error)))
        batch = {"key": key, "labels": labels, "bad": bad}
        if decoded:
            try:
                batch["pixel_values"] = self.processor(decoded, return_tensors="pt").pixel_values
            except ValueError as error:
                raise ValueError(
                    f"The image processor can't make a batch of the images ({error}): use one that crops or pads them "
                    "to one size."
                ) from error
        return batch


def _report(bad: list[tuple[str, str]], split: str) -> None:
    for row, reason in bad[:NAMED_BAD_ROWS]:
        logger.warning("Image %s of the %s split could not be decoded and is left out: %s.", row, split, reason)
    if len(bad) > NAMED_BAD_ROWS:
        logger.warning("%d images of the %s split could not be decoded and are left out.", len(bad), split)
