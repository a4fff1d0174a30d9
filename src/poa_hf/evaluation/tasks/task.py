"""The parts of every evaluation task: labelled features, options and scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ...ranges import Range, check_number, plain
from ..alterations.alteration import Alteration, AlteredFeatures, ModelInput
from ..images.layer_features import LayerFeatures


@dataclass(frozen=True)
class Options:
    """The options that tasks have in common.

    Args:
        seed: The seed of everything random in a task, such as held-out images, draws of labels and first centres.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        # records are files, which hold Python's own numbers, and an option may be one of NumPy's
        for option in fields(self):
            object.__setattr__(self, option.name, plain(getattr(self, option.name)))


@dataclass(frozen=True)
class LabelledFeatures:
    """The features (N, D) and labels (N,), whole numbers from 0, of one split.

    `altered` are the features of the same images, altered as the task declares; `variants` those of the variants that
    the dataset itself has, for a task that `needs_backgrounds`, with a label of -1 for classes of no other image;
    `layers` those of several layers, for a task that asks for `layers`.
    """

    features: Tensor
    labels: Tensor
    altered: Mapping[Alteration, AlteredFeatures] = field(default_factory=dict)
    variants: Mapping[str, LabelledFeatures] = field(default_factory=dict)
    layers: LayerFeatures | None = None


@dataclass(frozen=True)
class Score:
    """One number that a task measures.

    Args:
        metric: Its name, such as `knn_accuracy`.
        value: From 0 to 1 for most metrics.
        settings: What the number depends on, such as `k`. Scores with other settings do not compare.
        details: What came out beside it, such as the learning rate that was picked.
        outcomes: What the number is the mean of, for each test image, such as 1 where it is classified rightly and 0
            where not: (N,) in the order of the test split, or (N, R) for R repeats such as draws of the labels. NaN for
            an image that does not count. None if the number is no such mean.
        interval: The 95 % interval of the number, where it is not that of a mean of `outcomes`, which is found from
            them.
        replicates: The number on each of the `resamples` of the test images by the options' seed, for a number that is
            no mean of `outcomes`: of two models, they are compared replicate by replicate.
        images: How many test images these resamples draw from, where some do not count.
    """

    metric: str
    value: float
    settings: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    outcomes: Tensor | None = field(default=None, repr=False, compare=False)
    interval: tuple[float, float] | None = None
    replicates: Tensor | None = field(default=None, repr=False, compare=False)
    images: int | None = None


def check_numbers(name: str, values: Any, allowed: Range) -> None:
    """Raise ValueError unless an option is a list of at least one number, all of them in a range."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name} is {values}: give a list of {allowed.described(several=True)}.")
    check_number(name, values, allowed)


OptionsT = TypeVar("OptionsT", bound=Options, contravariant=True)
Run = Callable[[LabelledFeatures, LabelledFeatures, int, OptionsT, torch.device], list[Score]]


@dataclass(frozen=True)
class Task(Generic[OptionsT]):
    """One way to measure how good features are. Each file of this folder holds one; `tasks/__init__.py` lists them.

    Args:
        name: What `--tasks` and recorded evaluations call it.
        run: Gives the scores from the train split, the test split, the number of classes in both together, the options,
            and the device to compute on.
        needs_train: False for a task that looks at the test split only. Its `run` gets an empty train split.
        check: Raises ValueError for options that are not valid, or that ask for more than the number of train images
            allows. The number is None where it is not known or does not matter.
        alterations: The alterations of test images whose features `run` finds in the test split's `altered`, from the
            options and from what the images are that the model gets. It raises ValueError for options that do not fit.
        needs_backgrounds: True for a task that needs masks of the test images, or variants of them with other
            backgrounds. Where the dataset has variants, `alterations` are not asked for.
        train_alterations: The same for train images, which are found in the train split's `altered`.
        layers: Which blocks' features the task needs beside those of the model, `last` or `spread` (`layers.py`), from
            the options; None if it needs no others.
        remark: A sentence about what is left out with this number of train images, or None if nothing is.
    """

    name: str
    run: Run[OptionsT]
    needs_train: bool = True
    check: Callable[[OptionsT, int | None], None] = lambda options, train_images: None
    alterations: Callable[[OptionsT, ModelInput], Sequence[Alteration]] = lambda options, images: ()
    needs_backgrounds: bool = False
    train_alterations: Callable[[OptionsT, ModelInput], Sequence[Alteration]] = lambda options, images: ()
    layers: Callable[[OptionsT], str | None] = lambda options: None
    remark: Callable[[OptionsT, int], str | None] = lambda options, train_images: None


# For `evaluate.Metric`: its tables are small here, and processes that share files would have to lock them.
IN_MEMORY = {"keep_in_memory": True}
