"""The evaluation tasks: each measures the quality of frozen features in a different way.

There are tasks of images, each a `Task`, and tasks of patches, each a `DenseTask`.

To add a task, write one file like its neighbours, which holds the task's options, their check and the computation as
one `Task`. Then add the task to `_TASKS`, its options, if it has any, to the bases of `TaskOptions`, and its metrics to
`METRICS` in `runs/metrics.py`. A test reminds you of the help of `poa evaluate`, which names the tasks without
importing them.

A task on altered test images also declares them (`Task.alterations`, see `evaluation/alterations/alteration.py`).
`altered.py` turns their features into a curve and its mean; `shuffle.py` is the shortest example. A task of patches
is an instance of a subclass of `DenseTask`, in `_DENSE_TASKS`; `correspondence.py` is the shortest example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...ranges import SEED, check_number
from ..alterations.alteration import Alteration, ModelInput
from .backgrounds import BACKGROUNDS
from .clustering import CLUSTERING, ClusteringOptions
from .correspondence import CORRESPONDENCE, CorrespondenceOptions
from .corruptions import CORRUPTIONS_TASK, CorruptionOptions
from .dense_task import DenseTask
from .depth import DEPTH, DepthOptions
from .knn import KNN, KnnOptions
from .linear import LINEAR
from .lowshot import LOW_SHOT, LowShotOptions
from .occlusion import OCCLUSION, OcclusionOptions
from .protocols import LinearOptions
from .retrieval import RETRIEVAL, RetrievalOptions
from .segmentation import SEGMENTATION, SegmentationOptions
from .shuffle import SHUFFLE, ShuffleOptions
from .task import LabelledFeatures, Score, Task


@dataclass(frozen=True)
class TaskOptions(
    OcclusionOptions,
    ShuffleOptions,
    CorruptionOptions,
    KnnOptions,
    LinearOptions,
    LowShotOptions,
    RetrievalOptions,
    ClusteringOptions,
    SegmentationOptions,
    DepthOptions,
    CorrespondenceOptions,
):
    """The options of all tasks together; the class of each task's options says what they mean."""


_TASKS: tuple[Task[TaskOptions], ...] = (
    *(KNN, LINEAR, LOW_SHOT, CLUSTERING, RETRIEVAL),
    *(OCCLUSION, SHUFFLE, CORRUPTIONS_TASK, BACKGROUNDS),
)
_DENSE_TASKS: tuple[DenseTask[TaskOptions], ...] = (SEGMENTATION, DEPTH, CORRESPONDENCE)
_BY_NAME = {task.name: task for task in _TASKS}
_DENSE_BY_NAME = {task.name: task for task in _DENSE_TASKS}
_ALL: dict[str, Task[TaskOptions] | DenseTask[TaskOptions]] = {**_BY_NAME, **_DENSE_BY_NAME}
IMAGE_TASKS, DENSE_TASKS = tuple(_BY_NAME), tuple(_DENSE_BY_NAME)
TASKS = tuple(_ALL)


def check_tasks(tasks: Sequence[str], options: TaskOptions, train_images: int | None) -> None:
    """Refuse tasks that do not exist and options that are not valid, before any work.

    Args:
        train_images: The number of train images, None if it is not known yet.

    Raises:
        ValueError: For an unknown task or none at all, options that are not valid, or options of a chosen task that
            `train_images` images do not allow.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise ValueError(f"{(unknown or ['nothing'])[0]!r} is not a task: choose from {', '.join(TASKS)}.")
    check_number("seed", options.seed, SEED)
    for task in _ALL.values():
        task.check(options, train_images if task.name in tasks else None)


def need_train(tasks: Sequence[str]) -> bool:
    """Return whether any of the tasks needs a train split."""
    return any(_ALL[task].needs_train for task in tasks)


def need_backgrounds(tasks: Sequence[str]) -> bool:
    """Return whether any of the tasks needs masks of the test images, or variants of them with other backgrounds."""
    return any(_BY_NAME[task].needs_backgrounds for task in tasks if task in _BY_NAME)


def by_kind(tasks: Sequence[str]) -> list[list[str]]:
    """Return the tasks in groups that are evaluated on splits of one kind: those of images, and those of patches."""
    groups = [[task for task in tasks if task in known] for known in (IMAGE_TASKS, DENSE_TASKS)]
    return [group for group in groups if group]


def pixel_kinds(tasks: Sequence[str]) -> list[str] | None:
    """Return the kinds of values of pixels that tasks of patches need; None for tasks of images."""
    chosen = dense_tasks(tasks)
    return sorted({task.kind for task in chosen if task.kind is not None}) if chosen else None


def dense_tasks(tasks: Sequence[str]) -> list[DenseTask[TaskOptions]]:
    """Return those of the tasks that look at patches."""
    return [_DENSE_BY_NAME[task] for task in tasks if task in _DENSE_BY_NAME]


def alterations_of(
    tasks: Sequence[str], options: TaskOptions, images: ModelInput, has_variants: bool = False
) -> list[Alteration]:
    """Return the alterations of test images that the tasks need, each once.

    Args:
        images: What the images are that the model gets.
        has_variants: Whether the dataset has variants of the images with other backgrounds, so that none are made.

    Raises:
        ValueError: For options that do not fit these images.
    """
    of_images = [_BY_NAME[task] for task in tasks if task in _BY_NAME]
    of_images = [task for task in of_images if not (has_variants and task.needs_backgrounds)]
    return list(dict.fromkeys(each for task in of_images for each in task.alterations(options, images)))


def train_alterations_of(tasks: Sequence[str], options: TaskOptions, images: ModelInput) -> list[Alteration]:
    """Return the alterations of train images that the tasks need, each once, as `alterations_of` does for test images.

    Args:
        images: What the images are that the model gets.
    """
    of_images = [_BY_NAME[task] for task in tasks if task in _BY_NAME]
    return list(dict.fromkeys(each for task in of_images for each in task.train_alterations(options, images)))


def layers_of(tasks: Sequence[str], options: TaskOptions) -> str | None:
    """Return which blocks' features the tasks need beside those of the model; None if they need no others."""
    wanted = (_BY_NAME[task].layers(options) for task in tasks if task in _BY_NAME)
    return next((blocks for blocks in wanted if blocks is not None), None)


def remarks(tasks: Sequence[str], options: TaskOptions, train_images: int) -> list[str]:
    """Return sentences about what the tasks leave out with this number of train images."""
    candidates = (_ALL[task].remark(options, train_images) for task in tasks)
    return [remark for remark in candidates if remark]


def run_task(
    task: str,
    train: LabelledFeatures | None,
    test: LabelledFeatures,
    num_classes: int,
    options: TaskOptions,
    device: torch.device,
) -> list[Score]:
    """Return the scores of one task.

    Args:
        task: One of `TASKS` that looks at images.
        train: May be None for a task that looks at the test split only, such as clustering.
        num_classes: The number of classes in both splits together.
        device: Where the task is computed.

    Raises:
        ValueError: If the task needs a train split and there is none.
    """
    chosen = _BY_NAME[task]
    if train is None:
        if chosen.needs_train:
            raise ValueError(f"The task {task} needs the features of a train split: give them.")
        train = LabelledFeatures(test.features[:0], test.labels[:0])
    return chosen.run(train, test, num_classes, options, device)


__all__ = [
    "DENSE_TASKS",
    "IMAGE_TASKS",
    "TASKS",
    "LabelledFeatures",
    "Score",
    "Task",
    "TaskOptions",
    "alterations_of",
    "by_kind",
    "check_tasks",
    "dense_tasks",
    "layers_of",
    "need_backgrounds",
    "need_train",
    "pixel_kinds",
    "remarks",
    "run_task",
    "train_alterations_of",
]
