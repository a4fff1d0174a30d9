"""The record of a score: what was measured, on which images of which dataset, and how sure the number is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from torch import Tensor

from ..runs.evaluations import Evaluation, sound_interval
from .images.measured import pretrained_on_test
from .splits import EvaluationData
from .statistics.intervals import mean_interval
from .subject import Subject
from .tasks import Score


@dataclass(frozen=True)
class Measurement:
    """A record, and what models are compared by, if that was asked for: parts of its `Score` of the same names."""

    record: Evaluation
    outcomes: Tensor | None = None
    replicates: Tensor | None = None
    images: int | None = None

    @classmethod
    def of_score(cls, record: Evaluation, score: Score) -> Measurement:
        """Return a measurement with all that its score has."""
        return cls(record, score.outcomes, score.replicates, score.images)


def record_of(
    subject: Subject,
    data: EvaluationData[Any],
    size: str,
    task: str,
    score: Score,
    *,
    train_images: int | None,
    test_images: int,
    coinciding_images: int | None,
    skipped_images: int,
    bf16: bool,
) -> Evaluation:
    """Return the record of a score.

    Args:
        subject: The model.
        data: The dataset.
        size: The size of the model.
        task: The task's name.
        score: The number.
        train_images: The number of train images that were used; None for a task that needs none.
        test_images: The number of test images that were used.
        coinciding_images: The number of test images that are train images too, where they were compared.
        skipped_images: The number of images that could not be decoded.
        bf16: Whether the features were computed in bfloat16.
    """
    return Evaluation(
        model=subject.name,
        size=size,
        task=task,
        metric=score.metric,
        value=score.value,
        dataset=data.name,
        dataset_config=data.config_name,
        train_split=data.train.name if train_images is not None and data.train else None,
        test_split=data.test.name,
        train_images=train_images,
        test_images=test_images,
        holdout=data.holdout.fraction if data.holdout else None,
        holdout_seed=data.holdout.seed if data.holdout else None,
        coinciding_images=coinciding_images,
        pretrained_on_test=pretrained_on_test(subject, data),
        skipped_images=skipped_images,
        step=subject.step,
        date=datetime.now(UTC).date().isoformat(),
        settings=score.settings | ({"bf16": True} if bf16 else {}),
        details=score.details,
        interval=_interval(score),
    )


def _interval(score: Score) -> list[float] | None:
    interval = score.interval
    if interval is None and score.outcomes is not None:
        interval = mean_interval(score.outcomes.numpy())
    return sound_interval(interval)
