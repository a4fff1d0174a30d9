"""Evaluation of any sizes straight from one supernet: features of all of them in one pass, then task by task."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from tqdm.auto import tqdm

from ..elastic import SubNetwork
from ..runs.evaluations import Evaluation
from .features import ImageFeatures, evaluation_mode, image_features
from .processes import Processes
from .splits import EvaluationData, encode_labels
from .subject import Subject
from .tasks.runner import DEFAULT_KS, LabelledFeatures, TaskOptions, check_tasks, knn_ks, run_task

logger = logging.getLogger(__name__)

# An elastic model keeps the plain models of so many sizes at hand (`slicing.py`); more would be built at every batch.
SIZES_PER_PASS = 16


def evaluate_sizes(
    subject: Subject,
    data: EvaluationData,
    sizes: str | Sequence[str | SubNetwork] | None = None,
    tasks: Sequence[str] = ("knn", "linear"),
    options: TaskOptions | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    bf16: bool = False,
    feature_memory_gb: float = 4.0,
) -> list[Evaluation]:
    """Evaluate sizes of a model on a dataset; each result is one record, size by size and task by task.

    On several processes each makes the features of its share of the images, and then does the tasks of its share of the
    sizes. The numbers are those of a single process, and every process gets all of them.

    Args:
        subject: from `load_subject`, or around a model at hand. Its weights are sliced, not copied, and it is left as
            it was, but on the device that is used.
        data: from `open_splits`, or around datasets at hand. `train` is needed for all tasks but clustering.
        sizes: as `Subject.sizes` takes them.
        tasks: some of `TASKS`.
        batch_size: images at a time, per process.
        num_workers: processes that decode images, per process.
        bf16: compute features in bfloat16 (autocast).
        feature_memory_gb: how much memory the features of one pass over the data may take, in all processes together.
            Where all sizes need more, several passes are made, at least one size each.

    Raises:
        ValueError: for sizes or tasks that don't exist, data that lacks what they need, or models that give no features
            of it; before any work where that can be known.
    """
    options = options or TaskOptions()
    names = subject.sizes(sizes)
    needs_train = set(tasks) != {"clustering"}
    if needs_train and data.train is None:
        raise ValueError(f"The tasks {', '.join(tasks)} need a train split: give one, or ask for clustering alone.")
    if batch_size < 1 or num_workers < 0 or feature_memory_gb <= 0:
        raise ValueError(
            f"batch_size {batch_size}, num_workers {num_workers} and feature_memory_gb {feature_memory_gb} must be at "
            "least 1, at least 0, and positive."
        )
    splits = [data.train, data.test] if needs_train else [data.test]
    check_tasks(tasks, options, data.train.known_length if needs_train else None)
    with Processes() as processes, evaluation_mode(subject.model):
        subject.model.to(processes.device)
        widths = subject.widths(names, processes.device)
        # of a single size it does not matter how many images there are
        images = sum(map(len, splits)) if len(names) > 1 else 0
        passes = _passes(widths, images, feature_memory_gb * 1e9)
        records: list[Evaluation] = []
        for number, part in enumerate(passes, 1):
            if len(passes) > 1 and processes.is_main:
                logger.info("Pass %d of %d over the images: %s.", number, len(passes), ", ".join(part))
            owners = {name: place % processes.count for place, name in enumerate(part)}
            how = {"batch_size": batch_size, "num_workers": num_workers, "bf16": bf16, "quiet": number > 1}
            models = subject.callables(part)
            found = [image_features(models, split, subject.processor, owners, processes, **how) for split in splits]
            if number == 1 and processes.is_main:
                _note(data, found, tasks, options)
            records += _own_records(subject, data, found, tasks, options, processes, {"bf16": True} if bf16 else {})
            del found  # before the next pass, or the features of two would be in memory
        everyone = [record for part in processes.from_all(records) for record in part]
    return sorted(everyone, key=lambda record: names.index(record.size))


def _passes(widths: dict[str, int], images: int, memory: float) -> list[list[str]]:
    """Sizes that are evaluated together, so that their float32 features fit into so many bytes."""
    passes: list[list[str]] = []
    used = 0
    for name, width in widths.items():
        needed = 4 * width * images
        if not passes or used + needed > memory or len(passes[-1]) == SIZES_PER_PASS:
            passes.append([])
            used = 0
        passes[-1].append(name)
        used += needed
    return passes


def _own_records(
    subject: Subject,
    data: EvaluationData,
    found: list[ImageFeatures],
    tasks: Sequence[str],
    options: TaskOptions,
    processes: Processes,
    settings: dict,
) -> list[Evaluation]:
    """The records of the sizes whose features this process owns."""
    train, test = found if len(found) == 2 else (None, found[0])
    train_labels, test_labels, num_classes = encode_labels(data, train.labels if train else [], test.labels)
    records = []
    hidden = None if processes.is_main else True  # None: where the output is no terminal
    with tqdm(total=len(test.features) * len(tasks), unit="task", leave=False, disable=hidden) as progress:
        for name in test.features:
            memory = LabelledFeatures(train.features[name], train_labels) if train else None
            queries = LabelledFeatures(test.features[name], test_labels)
            for task in tasks:
                progress.set_description(f"{name} {task}" if name != "-" else task)
                for score in run_task(task, memory, queries, num_classes, options, processes.device):
                    used = train if task != "clustering" else None
                    records.append(
                        Evaluation(
                            model=subject.name,
                            size=name,
                            task=task,
                            metric=score.metric,
                            value=score.value,
                            dataset=data.name,
                            dataset_config=data.config_name,
                            train_split=data.train.name if used else None,
                            test_split=data.test.name,
                            train_images=len(train_labels) if used else None,
                            test_images=len(test_labels),
                            skipped_images=test.skipped + (used.skipped if used else 0),
                            step=subject.step,
                            date=datetime.now(UTC).date().isoformat(),
                            settings=score.settings | settings,
                            details=score.details,
                        )
                    )
                progress.update()
    return records


def _note(data: EvaluationData, found: list[ImageFeatures], tasks: Sequence[str], options: TaskOptions) -> None:
    """Say what in the data or the options does not show in the numbers."""
    if len(found) < 2:
        return
    train, test = found
    train_labels, test_labels, num_classes = encode_labels(data, train.labels, test.labels)
    absent = set(test_labels.tolist()) - set(train_labels.tolist())
    if absent:
        share = sum(label in absent for label in test_labels.tolist()) / len(test_labels)
        logger.warning(
            "%d of %d classes have no train image, so %.0f %% of the test images can't be right: give more images.",
            len(absent),
            num_classes,
            100 * share,
        )
    left_out = [k for k in DEFAULT_KS if options.k is None and k > len(train_labels)]
    if "knn" in tasks and left_out and knn_ks(options, len(train_labels)):
        many = ", ".join(map(str, left_out))
        logger.warning("k-NN with k = %s is left out: there are %d train images.", many, len(train_labels))
