"""Accuracy on corrupted test images: noise, blur, JPEG, brightness and contrast at five strengths.

Each test image is corrupted in each way (`evaluation/alterations/corruptions.py` says how, and after whom), and
classified by k-NN with the train images as they are for memory. The number is the mean accuracy over all corruptions
and strengths.

Hendrycks and Dietterich 2019 divide a model's error by that of AlexNet (mCE), for which AlexNet would have to be
trained on the same data. Here the details hold accuracies relative to the one on the images as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...formatting import suggest
from ...ranges import Range
from ..alterations.alteration import ModelInput
from ..alterations.corruptions import CORRUPTIONS, STRENGTHS, Corruption
from .altered import AlteredAccuracy, check_neighbours
from .knn import KnnOptions
from .task import LabelledFeatures, Score, Task, check_numbers

STRENGTH = Range(STRENGTHS[0], STRENGTHS[-1], whole=True)


@dataclass(frozen=True)
class CorruptionOptions(KnnOptions):
    """The options of the task `corruptions`.

    Args:
        corruptions: Some of `CORRUPTIONS`; None means all.
        corruption_strengths: From 1, the weakest, to 5; None means all.
    """

    corruptions: Sequence[str] | None = None
    corruption_strengths: Sequence[int] | None = None


def _chosen(options: CorruptionOptions) -> dict[str, list[Corruption]]:
    """Return the corruptions by name, in the order of `CORRUPTIONS` and of their strength."""
    names, strengths = options.corruptions or CORRUPTIONS, options.corruption_strengths or STRENGTHS
    return {
        name: [Corruption(name, strength, options.seed) for strength in sorted(set(strengths))]
        for name in CORRUPTIONS
        if name in names
    }


def _check(options: CorruptionOptions, train_images: int | None) -> None:
    for name in options.corruptions or ():
        if name not in CORRUPTIONS:
            raise ValueError(f"{name!r} is not a corruption: {suggest(name, CORRUPTIONS)}")
    if options.corruption_strengths is not None:
        check_numbers("corruption_strengths", options.corruption_strengths, STRENGTH)
    check_neighbours(options, train_images)


def _alterations(options: CorruptionOptions, images: ModelInput) -> list[Corruption]:
    return [corruption for of_name in _chosen(options).values() for corruption in of_name]


def _run(
    train: LabelledFeatures, test: LabelledFeatures, num_classes: int, options: CorruptionOptions, device: torch.device
) -> list[Score]:
    accuracy = AlteredAccuracy(train, test, num_classes, options, device)
    clean = accuracy.clean.mean().item()
    chosen = _chosen(options)
    by_name = {
        name: torch.stack([accuracy.outcomes(test.altered[corruption]) for corruption in of_name])
        for name, of_name in chosen.items()
    }  # (strengths, N) each
    strengths = [corruption.strength for corruption in next(iter(chosen.values()))]
    outcomes = torch.stack(list(by_name.values())).mean(dim=(0, 1))  # (N,)
    means = {name: part.mean().item() for name, part in by_name.items()}
    series = {name: [clean, *part.mean(dim=1).tolist()] for name, part in by_name.items()}
    details = {
        "clean_accuracy": clean,
        "relative_accuracy": _relative(outcomes.mean().item(), clean),
        "accuracies": means,
        "relative_accuracies": {name: _relative(mean, clean) for name, mean in means.items()},
        "curve": {"x_name": "strength", "x": [0, *strengths], "series": series},
    }
    settings = {"corruptions": list(by_name), "strengths": strengths, "seed": options.seed} | accuracy.settings
    return [Score("corruptions_accuracy", outcomes.mean().item(), settings, details, outcomes)]


def _relative(value: float, clean: float) -> float | None:
    return value / clean if clean else None


CORRUPTIONS_TASK = Task("corruptions", _run, check=_check, alterations=_alterations)
