"""Accuracy on test images whose background is removed or exchanged: how much a model relies on backgrounds.

The kinds of images are those of the backgrounds challenge (Xiao et al. 2020): the foreground alone (`only_fg`), the
background alone (`no_fg`), and the foreground on the background of another image of the same class (`mixed_same`) or of
another class (`mixed_rand`). They are made of the test images by their masks, or read from the challenge's folders,
which hold further kinds. The background gap is the accuracy on `mixed_same` minus that on `mixed_rand`.

All are classified by k-NN with the train images as they are for memory. Images without a foreground or without a
background are left out of all kinds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from ...data.decoding import Pixels
from ..alterations.alteration import AlteredSplit, ImageAlteration, ModelInput, random_of
from ..alterations.backgrounds import (
    Backgrounds,
    collect_backgrounds,
    on_background,
    only_foreground,
    without_foreground,
)
from ..data.masked import NO_MASKS, MaskedRow, foreground_of
from ..labelled import LabelledRow
from ..statistics.intervals import wilson_interval
from ..statistics.paired import bonett_price_interval
from .altered import AlteredAccuracy, check_neighbours, neighbours
from .knn import KnnOptions
from .task import LabelledFeatures, Score, Task

MIXED = ("mixed_same", "mixed_rand")
KINDS = ("only_fg", "no_fg", *MIXED)


@dataclass(frozen=True)
class OtherBackground(ImageAlteration):
    """Removes the foreground or the background of an image, or exchanges the background.

    Args:
        kind: One of `KINDS`.
        seed: The seed of the choice of other images.
        backgrounds: Those of other images, once the alteration is `ready`.
    """

    kind: str
    seed: int = 0
    backgrounds: Backgrounds | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return self.kind

    def ready(self, split: AlteredSplit) -> Self:
        return replace(self, backgrounds=split.once(collect_backgrounds)) if self.kind in MIXED else self

    def alter(self, image: Pixels, row: LabelledRow, image_hash: bytes) -> Pixels | None:
        if not isinstance(row, MaskedRow):
            raise ValueError(NO_MASKS)
        mask = foreground_of(row, image)
        if mask.all() or not mask.any():
            return None
        if self.kind == "only_fg":
            return only_foreground(image, mask)
        if self.kind == "no_fg":
            return without_foreground(image, mask)
        if self.backgrounds is None:
            raise RuntimeError("The alteration is not ready: it has no backgrounds.")
        generator = random_of(image_hash, self.seed, "backgrounds")
        other = self.backgrounds.draw(row.label, image_hash, self.kind == "mixed_same", generator)
        return None if other is None else on_background(image, mask, other)


def _alterations(options: KnnOptions, images: ModelInput) -> list[OtherBackground]:
    return [OtherBackground(kind, options.seed) for kind in KINDS]


def _run(
    train: LabelledFeatures, test: LabelledFeatures, num_classes: int, options: KnnOptions, device: torch.device
) -> list[Score]:
    settings = {"seed": options.seed, "k": neighbours(options, len(train.labels)), "temperature": options.temperature}
    if test.variants:
        kinds = {"original": test, **test.variants}
        outcomes = {
            kind: AlteredAccuracy(train, images, num_classes, options, device).clean for kind, images in kinds.items()
        }
        return _scores_of_variants(outcomes, {"images": "challenge", **settings})
    accuracy = AlteredAccuracy(train, test, num_classes, options, device)
    outcomes = {kind: accuracy.outcomes(test.altered[OtherBackground(kind, options.seed)]) for kind in KINDS}
    outcomes = {"original": accuracy.clean.where(~outcomes["only_fg"].isnan(), torch.nan)} | outcomes
    return _scores_of_masks(outcomes, {"images": "masks", **settings})


def _scores_of_masks(outcomes: Mapping[str, Tensor], settings: dict[str, Any]) -> list[Score]:
    scores = [_score(kind, of_kind, settings) for kind, of_kind in outcomes.items()]
    gaps = outcomes["mixed_same"] - outcomes["mixed_rand"]  # (N,), NaN where one of them is left out
    if not gaps.isnan().all():
        lost, gained, counted = int((gaps == 1).sum()), int((gaps == -1).sum()), int((~gaps.isnan()).sum())
        interval = bonett_price_interval(lost, gained, counted)
        scores.append(Score("background_gap", gaps.nanmean().item(), settings, _counts(gaps), gaps, interval))
    return scores


def _scores_of_variants(outcomes: Mapping[str, Tensor], settings: dict[str, Any]) -> list[Score]:
    """Return the scores of splits of which only the original one has the test images."""
    scores = []
    for kind, of_kind in outcomes.items():
        score = _score(kind, of_kind, settings)
        if kind != "original":
            score = replace(score, outcomes=None, interval=_wilson(of_kind))
        scores.append(score)
    if all(kind in outcomes for kind in MIXED):
        same, rand = (outcomes[kind] for kind in MIXED)
        gap = same.mean().item() - rand.mean().item()
        details = {"images": [len(same), len(rand)]}
        scores.append(Score("background_gap", gap, settings, details, interval=_newcombe(same, rand)))
    return scores


def _wilson(outcomes: Tensor) -> tuple[float, float]:
    return wilson_interval(int(outcomes.sum()), len(outcomes))


def _newcombe(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return the interval of the difference of two proportions of different images (Newcombe 1998, method 10)."""
    (low, high), (other_low, other_high) = _wilson(first), _wilson(second)
    p, q = first.mean().item(), second.mean().item()
    return p - q - math.hypot(p - low, other_high - q), p - q + math.hypot(high - p, q - other_low)


def _score(kind: str, outcomes: Tensor, settings: Mapping[str, Any]) -> Score:
    if outcomes.isnan().all():
        reason = "has another one of its class" if kind == "mixed_same" else "has both a foreground and a background"
        raise ValueError(
            f"The task backgrounds finds nothing of the kind {kind} to measure, as no test image {reason}: give other "
            "test images, or leave the task out."
        )
    return Score(
        "backgrounds_accuracy", outcomes.nanmean().item(), {"kind": kind, **settings}, _counts(outcomes), outcomes
    )


def _counts(outcomes: Tensor) -> dict[str, int]:
    left_out = int(outcomes.isnan().sum())
    return {"images": len(outcomes) - left_out, "left_out": left_out}


BACKGROUNDS = Task("backgrounds", _run, check=check_neighbours, alterations=_alterations, needs_backgrounds=True)
