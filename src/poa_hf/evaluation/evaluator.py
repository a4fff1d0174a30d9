"""Evaluation of any sizes directly from one supernet: the features of all of them in one pass, then task by task."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..models.elastic_model import PLAIN_MODELS_KEPT
from ..runs.evaluations import Evaluation
from ..sub_network import SubNetwork
from .alterations.alteration import PixelBatch, check_alterations
from .alterations.saliency import patch_saliency
from .data.masked import NO_MASKS, MaskedImages
from .dense.evaluator import DenseWork
from .dense.images import DenseImages
from .features import evaluation_mode
from .images.image_work import ImageWork
from .processes import Processes
from .record import Measurement as Measurement
from .splits import EvaluationData
from .subject import Subject
from .tasks import (
    DENSE_TASKS,
    TaskOptions,
    alterations_of,
    check_tasks,
    dense_tasks,
    layers_of,
    need_backgrounds,
    need_train,
    train_alterations_of,
)

logger = logging.getLogger(__name__)


def evaluate_sizes(
    subject: Subject,
    data: EvaluationData[Any],
    sizes: str | Sequence[str | SubNetwork] | None = None,
    tasks: Sequence[str] = ("knn", "linear"),
    options: TaskOptions | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    bf16: bool = False,
    feature_memory_gb: float = 4.0,
    quiet: bool = False,
) -> list[Evaluation]:
    """Evaluate sizes of a model on a dataset with labels, or with values of pixels.

    With several processes, each computes the features of its share of the images, and then the tasks of its share of
    the sizes. The numbers are those of a single process, and every process gets all of them.

    Args:
        subject: The model, from `load_subject` or built from a model in memory. Its weights are sliced, not copied. It
            is unchanged afterwards, except that it stays on the device that is used.
        data: The dataset, from `open_splits` or built from datasets in memory. Most tasks need its `train`. Tasks that
            look at patches take splits of `DenseImages`, all others of `LabelledImages`.
        sizes: What `Subject.sizes` takes, the named sizes by default.
        tasks: Some of `TASKS`; one that is named twice counts once.
        options: The options of the tasks.
        batch_size: Images at a time, per process.
        num_workers: Processes that decode images, per process.
        bf16: Compute the features in bfloat16 (autocast).
        feature_memory_gb: Memory in GB for the features of one pass over the data, in all processes together. If all
            sizes need more, several passes are made, each with at least one size.
        quiet: Leave out what there is to say about the data, for example because an earlier evaluation said it.

    Returns:
        One record per number, ordered by size and then by task.

    Raises:
        ValueError: For sizes or tasks that do not exist, data that lacks what the tasks need, or a model that gives no
            features of the images. Whatever can be checked before the work starts is checked then.

    Example:
        >>> from transformers import Dinov2Config, Dinov2Model
        >>> from poa_hf.data.processor import evaluation_processor
        >>> from poa_hf.evaluation.splits import open_splits
        >>> shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
        >>> model = Dinov2Model(Dinov2Config(**shape))
        >>> subject = Subject("tiny", model, evaluation_processor(32))
        >>> data = open_splits("textures", max_train_images=20, max_test_images=10)
        >>> [record] = evaluate_sizes(subject, data, tasks=["knn"], options=TaskOptions(k=(5,)))
        >>> record.metric, record.settings["k"], record.train_images, record.test_images
        ('knn_accuracy', 5, 20, 10)
    """
    measurements, _ = measure_sizes(
        subject, data, sizes, tasks, options, batch_size, num_workers, bf16, feature_memory_gb, quiet, outcomes=False
    )
    return [measurement.record for measurement in measurements]


def measure_sizes(
    subject: Subject,
    data: EvaluationData,
    sizes: str | Sequence[str | SubNetwork] | None = None,
    tasks: Sequence[str] = ("knn", "linear"),
    options: TaskOptions | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    bf16: bool = False,
    feature_memory_gb: float = 4.0,
    quiet: bool = False,
    outcomes: bool = True,
) -> tuple[list[Measurement], list[str]]:
    """Evaluate sizes as `evaluate_sizes` does, and keep what each test image contributes.

    Args:
        outcomes: Whether to keep it. The other arguments are those of `evaluate_sizes`.

    Returns:
        The measurements, ordered by size and then by task, and the names of the test images, in the order of the
        outcomes.

    Raises:
        ValueError: As `evaluate_sizes` does.
    """
    options = options or TaskOptions()
    names, tasks = subject.sizes(sizes), list(dict.fromkeys(tasks))
    check_tasks(tasks, options, None)
    _check_kind(tasks, data)
    if data.train is None and need_train(tasks):
        raise ValueError(f"The tasks {', '.join(tasks)} need a train split: give one, or ask for clustering only.")
    if batch_size < 1 or num_workers < 0 or feature_memory_gb <= 0:
        raise ValueError(
            f"batch_size {batch_size}, num_workers {num_workers} and feature_memory_gb {feature_memory_gb} must be at "
            "least 1, at least 0, and positive."
        )
    with Processes() as processes, evaluation_mode(subject.model):
        computing = processes, batch_size, num_workers, bf16
        alterations = alterations_of(tasks, options, subject.input, bool(data.variants))
        views = train_alterations_of(tasks, options, subject.input)
        work: ImageWork | DenseWork
        if isinstance(data.test, DenseImages):
            work = DenseWork(subject, data, dense_tasks(tasks), options, *computing)
        else:
            work = ImageWork(subject, data, tasks, options, alterations, views, layers_of(tasks, options), *computing)
        check_tasks(tasks, options, work.train.known_length if work.train else None)
        subject.model.to(processes.device)  # type: ignore[arg-type]  # transformers' wrapper hides `self`
        widths = subject.widths(names, processes.device)
        if isinstance(work, ImageWork):
            widths = work.widths(widths)
            if views and processes.is_main and not quiet:
                work.say_cost(widths)
        black = PixelBatch(subject.black_image.to(processes.device), [b""], patch_saliency(subject.model))
        check_alterations(alterations, black)
        # a single size needs one pass, however many images there are
        num_vectors = work.num_vectors if len(names) > 1 else 0
        passes = _passes(widths, num_vectors, feature_memory_gb * 1e9)
        measurements: list[Measurement] = []
        for number, part in enumerate(passes, 1):
            if len(passes) > 1 and processes.is_main:
                logger.info("Pass %d of %d over the images: %s.", number, len(passes), ", ".join(part))
            found, images = work.measurements(part, quiet or number > 1, outcomes)
            measurements += found
        everyone = [measurement for part in processes.from_all(measurements) for measurement in part]
    return sorted(everyone, key=lambda measurement: names.index(measurement.record.size)), images


def _check_kind(tasks: Sequence[str], data: EvaluationData[Any]) -> None:
    """Raise ValueError for splits that do not hold what the tasks need."""
    is_dense = isinstance(data.test, DenseImages)
    wrong = [task for task in tasks if (task in DENSE_TASKS) != is_dense]
    if wrong:
        needed = "labels, but the splits have none" if is_dense else "DenseImages, but the splits have labels"
        raise ValueError(f"The task {wrong[0]} needs {needed}: evaluate it on splits of its own kind.")
    if need_backgrounds(tasks) and not data.variants and not isinstance(data.test, MaskedImages):
        raise ValueError(NO_MASKS)
    for task in dense_tasks(tasks):
        if task.kind is not None and task.kind not in data.test.kinds:
            raise ValueError(
                f"The task {task.name} needs a {task.kind} for each image, but the splits are opened with "
                f"{', '.join(data.test.kinds) or 'none'}: open them with it."
            )


def _passes(widths: dict[str, int], num_vectors: int, memory: float) -> list[list[str]]:
    """Group sizes into passes such that the float32 features of each pass fit into `memory` bytes.

    A pass has no more sizes than an elastic model keeps plain models: with more, they would be rebuilt at every batch.

    Args:
        widths: The number of channels of each size's features.
        num_vectors: The number of feature vectors of each size.
    """
    passes: list[list[str]] = []
    used = 0
    for size, width in widths.items():
        needed = 4 * width * num_vectors
        if not passes or used + needed > memory or len(passes[-1]) == PLAIN_MODELS_KEPT:
            passes.append([])
            used = 0
        passes[-1].append(size)
        used += needed
    return passes
