"""Semantic segmentation with frozen features of patches: which class each pixel is of.

Two classifiers see nothing but the features. The linear one is that of DINOv2: one layer on features with batch
statistics, its logits upsampled bilinearly to the mask's size. As interpolation is linear too, the logits at a pixel
are those of the features interpolated there, so it is trained by cross-entropy at a random sample of pixels of each
image, for all learning rates at once, and a held-out part of the train images picks one. The other is k-NN: each patch
is classified by the most similar patches of train images, whose labels are the majorities of their pixels, and the
shares of votes are upsampled like logits.

Every pixel of the test masks counts, in the mask's own resolution, except those with an index to ignore. The mIoU is
the mean over classes that are in the test masks or were predicted.

Sources: Oquab et al. 2023, "DINOv2", section 7.4; Balazevic et al. 2023, "Towards In-Context Scene Understanding".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...ranges import Range, check_number
from ..dense.maps import at_pixels, majorities, upsampled
from ..dense.pixel_values import MAX_CLASS
from ..statistics.intervals import replicated_interval, resamples
from .dense_task import DenseOptions, DenseTask, Example, Fitted, drawn_pixels, held_out_rows
from .knn import knn_votes
from .probe import fit_linear_probe
from .task import Score

USUAL_IGNORED = 255  # the index that most datasets give to pixels without a class
NEIGHBOURS, TEMPERATURE = 20, 0.07
CLASSES = Range(2, MAX_CLASS + 1, whole=True)
CLASSIFIERS = {"linear": "segmentation", "knn": "segmentation_knn"}  # by kind, how its metrics begin


@dataclass(frozen=True)
class SegmentationOptions(DenseOptions):
    """The options of segmentation.

    Args:
        num_classes: The number of classes, whose numbers are from 0; by default, the classes are those of the train
            masks.
        ignore_index: Numbers of pixels that do not count, beside 255 (which is a class if there are more than 255).
    """

    num_classes: int | None = None
    ignore_index: tuple[int, ...] = ()

    @property
    def ignored(self) -> list[int]:
        """All numbers of pixels that do not count."""
        usual = [USUAL_IGNORED] if (self.num_classes or 0) <= USUAL_IGNORED else []
        return sorted({*self.ignore_index, *usual})


class SegmentationTask(DenseTask[SegmentationOptions]):
    """The task `segmentation`."""

    name, kind = "segmentation", "mask"

    def check(self, options: SegmentationOptions, train_images: int | None) -> None:
        super().check(options, train_images)
        if options.num_classes is not None:
            check_number("num_classes", options.num_classes, CLASSES)

    def collect(
        self, features: Tensor, example: Example, quota: int, options: SegmentationOptions
    ) -> dict[str, Tensor]:
        values = example.values["mask"].astype(np.int64)
        mask = torch.from_numpy(values.copy())
        mask[torch.isin(mask, torch.tensor(options.ignored))] = -1
        _check_known(values, mask, options)
        generator = example.generator(options.seed)
        rows, columns, share = drawn_pixels(mask >= 0, quota, generator)
        device = features.device
        points = at_pixels(features, rows.to(device), columns.to(device), *mask.shape)  # (P, D)
        labels = majorities(mask, (features.shape[0], features.shape[1]))
        kept = (labels >= 0).nonzero()[:, 0]
        kept = kept[torch.randperm(len(kept), generator=generator)[:quota]].sort().values
        return {
            "points": points,
            "point_labels": torch.stack([mask[rows, columns].float(), share], dim=1),
            "patches": features.flatten(0, 1)[kept.to(device)],
            "patch_labels": labels[kept].float()[:, None],
            "classes": mask[mask >= 0].unique().float()[:, None],
        }

    def fit(
        self, samples: Mapping[str, Tensor], split: str, options: SegmentationOptions, device: torch.device
    ) -> Fitted:
        found = samples["classes"].long().unique()
        if len(found) == 0:
            raise ValueError(_all_ignored(split, options))
        if len(found) == 1:
            raise ValueError(
                f"The masks of the {split} split hold one class only ({found.item()}), so there is nothing to tell "
                "apart: give masks of at least two classes."
            )
        classes = found if options.num_classes is None else torch.arange(options.num_classes)
        labels = torch.searchsorted(classes, samples["point_labels"][:, 0].long())
        shares = samples["point_labels"][:, 1]
        held_out = held_out_rows(shares, options.seed)
        probe = fit_linear_probe(
            samples["points"], labels, len(classes), seed=options.seed, device=device, held_out_images=held_out
        )
        memory = samples["patches"]
        return {
            "classes": classes,
            "ignored": options.ignored,
            "weight": probe.classifier.weight.cpu(),
            "bias": probe.classifier.bias.cpu(),
            "memory": memory,
            "memory_labels": torch.searchsorted(classes, samples["patch_labels"][:, 0].long()),
            "k": min(NEIGHBOURS, len(memory)),
            "points": len(labels),
            "learning_rate": probe.learning_rate,
            "held_out_accuracy": probe.held_out_accuracy,
        }

    def measure(
        self, fitted: Fitted, features: Tensor, view: Tensor | None, example: Example, options: SegmentationOptions
    ) -> Tensor:
        classes = fitted["classes"]
        truth = _numbered(example.values["mask"], classes.cpu(), fitted["ignored"]).to(features.device)
        flat = features.flatten(0, 1)  # (h * w, D)
        logits = flat @ fitted["weight"] + fitted["bias"]
        votes = knn_votes(
            fitted["memory"], fitted["memory_labels"], flat, fitted["k"], TEMPERATURE, len(classes)
        )  # (h * w, classes)
        return torch.stack([_counts(scores.view(*features.shape[:2], -1), truth) for scores in (logits, votes)]).cpu()

    def scores(self, outcomes: Tensor, fitted: Fitted, split: str, options: SegmentationOptions) -> list[Score]:
        if outcomes[:, 0, :, 2].sum() == 0:
            raise ValueError(_all_ignored(split, options))
        counted = outcomes[:, 0, :, 2].sum(dim=1) > 0  # images of which all pixels are ignored tell nothing
        common = {"seed": options.seed, "classes": len(fitted["classes"]), "ignored": options.ignored}
        scores = []
        for number, (kind, metric) in enumerate(CLASSIFIERS.items()):
            if kind == "linear":
                settings = common | {"pixels": fitted["points"]}
                details = {"learning_rate": fitted["learning_rate"], "held_out_accuracy": fitted["held_out_accuracy"]}
            else:
                settings = common | {"k": fitted["k"], "temperature": TEMPERATURE, "patches": len(fitted["memory"])}
                details = {}
            counts = outcomes[counted, number]  # (N, classes, 3)
            total = counts.sum(dim=0)
            each = class_ious(total)
            by_class = {
                str(label): round(value, 6)
                for label, value in zip(fitted["classes"].tolist(), each.tolist(), strict=True)
                if value == value
            }
            mious, accuracies = _replicates(counts, options.seed)
            scores += [
                _score(
                    f"{metric}_miou",
                    each.nanmean().item(),
                    settings,
                    details | {"iou": by_class},
                    mious,
                    len(counts),
                ),
                _score(f"{metric}_accuracy", _pixel_accuracy(total).item(), settings, details, accuracies, len(counts)),
            ]
        return scores


SEGMENTATION = SegmentationTask()


def class_ious(counts: Tensor) -> Tensor:
    """Return the intersection over union of each class (..., classes), NaN for classes that do not occur at all.

    Args:
        counts: For each class the pixels that are rightly predicted, that are predicted, and that are of the class:
            (..., classes, 3).
    """
    union = counts[..., 1] + counts[..., 2] - counts[..., 0]
    return torch.where(union > 0, counts[..., 0] / union.clamp(min=1), torch.nan)


def _counts(scores: Tensor, truth: Tensor) -> Tensor:
    """Return the counts of `class_ious`, float64 (classes, 3), of an image.

    Args:
        scores: Those of classes for each patch, (h, w, classes).
        truth: The number of each pixel's class, int64 (height, width); -1 where it does not count.
    """
    classes = scores.shape[2]
    counts = torch.zeros(classes, 3, dtype=torch.float64, device=scores.device)
    for part, values in upsampled(scores, *truth.shape):
        counted = truth[part] >= 0
        right, predicted = truth[part][counted], values.argmax(dim=2)[counted]
        for column, numbers in enumerate((right[right == predicted], predicted, right)):
            counts[:, column] += torch.bincount(numbers, minlength=classes)
    return counts


def _numbered(mask: np.ndarray, classes: Tensor, ignored: list[int]) -> Tensor:
    """Return the numbers of classes, int64 (height, width), -1 for pixels to ignore.

    Raises:
        ValueError: For a class that is not among `classes`.
    """
    values = torch.from_numpy(mask.astype(np.int64))
    numbers = torch.searchsorted(classes, values).clamp(max=len(classes) - 1)
    is_ignored = torch.isin(values, torch.tensor(ignored, dtype=torch.int64))
    unknown = (classes[numbers] != values) & ~is_ignored
    if unknown.any():
        found = int(values[unknown][0])
        raise ValueError(
            f"has a pixel of the class {found}, which is none of the {len(classes)} classes, up to {int(classes[-1])}: "
            f"pass --num_classes {max(found, int(classes[-1])) + 1} if it is one, or --ignore_index {found} if not"
        )
    return torch.where(is_ignored, -1, numbers)


def _all_ignored(split: str, options: SegmentationOptions) -> str:
    return (
        f"All pixels of the {split} split's masks are to be ignored ({_listed(options.ignored)}): give other masks, or "
        "another --ignore_index."
    )


def _check_known(values: np.ndarray, mask: Tensor, options: SegmentationOptions) -> None:
    """Raise ValueError for a class that cannot be one, in a train mask whose ignored pixels are -1."""
    limit = MAX_CLASS if options.num_classes is None else options.num_classes - 1
    ignored = torch.isin(torch.from_numpy(values), torch.tensor(options.ignored))
    wrong = ((mask < 0) | (mask > limit)) & ~ignored
    if wrong.any():
        found = int(values[wrong.numpy()][0])
        raise ValueError(
            f"has a pixel of the class {found}, but classes are numbers from 0 to {limit}: pass --ignore_index {found} "
            "if it stands for no class, or another --num_classes"
        )


def _pixel_accuracy(counts: Tensor) -> Tensor:
    """Return the share of pixels (...) that are rightly predicted, of the counts of `class_ious`."""
    return counts[..., 0].sum(dim=-1) / counts[..., 2].sum(dim=-1)


def _replicates(counts: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return the mIoU and the pixel accuracy on resamples of the test images, (R,) each.

    Both are ratios of sums over images that count by their pixels, so they are no means of numbers of images.
    """
    flat, mious, accuracies = counts.flatten(1), [], []
    for drawn in resamples(len(counts), seed=seed):
        sums = (torch.from_numpy(drawn) @ flat).unflatten(1, counts.shape[1:])  # (B, classes, 3)
        mious.append(class_ious(sums).nanmean(dim=1))
        accuracies.append(_pixel_accuracy(sums))
    return torch.cat(mious), torch.cat(accuracies)


def _score(
    metric: str, value: float, settings: dict[str, Any], details: dict[str, Any], replicates: Tensor, images: int
) -> Score:
    interval = replicated_interval(replicates.numpy(), images)
    return Score(metric, value, settings, details, interval=interval, replicates=replicates, images=images)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
