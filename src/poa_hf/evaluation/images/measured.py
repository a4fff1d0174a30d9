"""What one pass over the images has measured, and what its data and options say about the numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..data.coinciding import ImageId, coinciding, warn_of_coinciding
from ..splits import EvaluationData, encode_labels
from ..subject import Subject
from ..tasks import LabelledFeatures, TaskOptions, remarks
from .split_features import ImageFeatures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """What one pass has measured: the features of both splits, and their labels (M,) and (N,) as whole numbers.

    `coinciding` are test images that are train images too, with these, if there is a train split; `variants` are the
    features of the test split's variants.
    """

    train: ImageFeatures | None
    test: ImageFeatures
    train_labels: Tensor
    test_labels: Tensor
    num_classes: int
    coinciding: list[tuple[ImageId, ImageId]] | None
    variants: Mapping[str, ImageFeatures] = field(default_factory=dict)

    @classmethod
    def of_splits(
        cls,
        data: EvaluationData,
        train: ImageFeatures | None,
        test: ImageFeatures,
        variants: Mapping[str, ImageFeatures] | None = None,
    ) -> Measured:
        """Combine the features of the train split, if there is one, of the test split and its variants with labels."""
        labels = encode_labels(data, train.labels if train else [], test.labels)
        return cls(train, test, *labels, coinciding(train.ids, test.ids) if train else None, variants or {})

    def train_features(self, size: str) -> LabelledFeatures:
        """Return the features of the train split, which must be there, and of its altered images, with their labels."""
        assert self.train is not None
        return LabelledFeatures(self.train.features[size], self.train_labels, self.train.altered.get(size, {}))

    def test_features(self, size: str) -> LabelledFeatures:
        """Return the features of the test split, of its altered images and of its variants, with their labels."""
        numbers = dict(zip(self.test.labels, self.test_labels.tolist(), strict=True))
        variants = {
            kind: LabelledFeatures(each.features[size], torch.tensor([numbers.get(label, -1) for label in each.labels]))
            for kind, each in self.variants.items()
        }
        return LabelledFeatures(self.test.features[size], self.test_labels, self.test.altered.get(size, {}), variants)


def pretrained_on_test(subject: Subject, data: EvaluationData[Any]) -> bool:
    """Whether the model was pre-trained, without labels, on images that it is tested on."""
    trained, tested = subject.trained_on, data.test_source
    return trained is not None and tested is not None and trained.overlaps(tested)


def warn_of_pretraining(subject: Subject, data: EvaluationData[Any]) -> None:
    """Warn if the model was pre-trained on the images that it is tested on."""
    if pretrained_on_test(subject, data):
        logger.warning(
            "%s was pre-trained, without labels, on the %s split that it is tested on, so its numbers may be "
            "higher than on new images.",
            subject.name,
            data.test.name,
        )


def warn_of(
    measured: Measured, subject: Subject, data: EvaluationData, tasks: Sequence[str], options: TaskOptions
) -> None:
    """Say what in the data or the options does not show in the numbers."""
    warn_of_pretraining(subject, data)
    if measured.train is None:
        return
    warn_of_coinciding(measured.coinciding or [], len(measured.test.labels))
    test_labels = measured.test_labels.tolist()
    absent = set(test_labels) - set(measured.train_labels.tolist())
    if absent:
        share = sum(label in absent for label in test_labels) / len(test_labels)
        logger.warning(
            "%d of %d classes have no train image, so %.0f %% of the test images cannot be right: give more images%s.",
            len(absent),
            measured.num_classes,
            100 * share,
            ", or use --holdout 0.2 if the rows are sorted by class" if data.holdout is None else "",
        )
    for remark in remarks(tasks, options, len(measured.train_labels)):
        logger.warning("%s", remark)
