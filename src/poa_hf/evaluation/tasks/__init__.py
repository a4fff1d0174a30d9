"""The evaluation tasks: each measures the quality of frozen features in a different way.

To add a task, write one file like its neighbours, which holds the task's options, their check and the computation as
one `Task`. Then add the task to `_TASKS`, and its options, if it has any, to the bases of `TaskOptions`. A test reminds
you of the help of `poa evaluate`, which names the tasks without importing them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..alterations import Alteration
from .clustering import CLUSTERING, ClusteringOptions
from .corruptions import CORRUPTIONS_TASK, CorruptionOptions
from .knn import KNN, KnnOptions
from .lowshot import LOW_SHOT, LowShotOptions
from .occlusion import OCCLUSION, OcclusionOptions
from .probe import LINEAR
from .retrieval import RETRIEVAL, RetrievalOptions
from .shuffle import SHUFFLE, ShuffleOptions
from .task import LabelledFeatures, Score, Task


@dataclass(frozen=True)
class TaskOptions(
    OcclusionOptions,
    ShuffleOptions,
    CorruptionOptions,
    KnnOptions,
    LowShotOptions,
    RetrievalOptions,
    ClusteringOptions,
):
    """The options of all tasks together; the class of each task's options says what they mean."""


_TASKS: tuple[Task[TaskOptions], ...] = (
    *(KNN, LINEAR, LOW_SHOT, CLUSTERING, RETRIEVAL),
    *(OCCLUSION, SHUFFLE, CORRUPTIONS_TASK),
)
TASKS = tuple(task.name for task in _TASKS)
_BY_NAME = dict(zip(TASKS, _TASKS, strict=True))


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
    for task in _TASKS:
        task.check(options, train_images if task.name in tasks else None)


def need_train(tasks: Sequence[str]) -> bool:
    """Return whether any of the tasks needs a train split."""
    return any(_BY_NAME[task].needs_train for task in tasks)


def alterations_of(tasks: Sequence[str], options: TaskOptions, image_size: tuple[int, int]) -> list[Alteration]:
    """Return the alterations of test images that the tasks need, each once.

    Args:
        image_size: Height and width of the images that the model gets.

    Raises:
        ValueError: For options that do not fit images of this size.
    """
    wanted = [alteration for task in tasks for alteration in _BY_NAME[task].alterations(options, image_size)]
    return list(dict.fromkeys(wanted))


def remarks(tasks: Sequence[str], options: TaskOptions, train_images: int) -> list[str]:
    """Return sentences about what the tasks leave out with this number of train images."""
    candidates = (_BY_NAME[task].remark(options, train_images) for task in tasks)
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
        task: One of `TASKS`.
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
    "TASKS",
    "LabelledFeatures",
    "Score",
    "Task",
    "TaskOptions",
    "alterations_of",
    "check_tasks",
    "need_train",
    "remarks",
    "run_task",
]
