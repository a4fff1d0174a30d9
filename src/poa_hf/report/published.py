"""The numbers that the paper gives for its models on ImageNet-1K, beside which a run's own can be seen."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..runs.evaluations import Evaluation

_IMAGENET = {"imagenet", "imagenet1k", "imagenet1kwds", "imagenet2012", "ilsvrc2012", "ilsvrcimagenet1k"}
_TEST_IMAGES, _CLASSES = 50_000, 1_000


@dataclass(frozen=True)
class PublishedModel:
    """A model of the paper (arXiv 2408.01031, tables 1 to 3), as extracted here.

    Args:
        family: Its architecture.
        name: What the paper calls it.
        parameters: Its parameters, without a classifier.
        flops: FLOPs of one image of 224 pixels; a multiply-add counts once.
        knn: Its k-NN accuracy on ImageNet-1K.
        linear: The accuracy of a linear probe.
    """

    family: str
    name: str
    parameters: int
    flops: int
    knn: float
    linear: float


PUBLISHED = (
    PublishedModel("ViT", "ViT-S/16", 21_675_264, 4_598_498_304, 0.768, 0.776),
    PublishedModel("ViT", "ViT-B/16", 85_817_856, 17_563_060_224, 0.809, 0.817),
    PublishedModel("ViT", "ViT-L/16", 303_351_808, 61_553_688_576, 0.823, 0.836),
    PublishedModel("Swin", "Swin-T", 27_542_676, 4_489_798_656, 0.775, 0.789),
    PublishedModel("Swin", "Swin-S", 48_884_916, 8_740_107_264, 0.793, 0.813),
    PublishedModel("Swin", "Swin-B", 86_806_768, 15_429_922_816, 0.796, 0.820),
    PublishedModel("ResNet", "ResNet-50", 23_508_032, 4_087_136_256, 0.734, 0.769),
    PublishedModel("ResNet", "ResNet-101", 42_500_160, 7_799_357_440, 0.757, 0.791),
    PublishedModel("ResNet", "ResNet-152", 58_143_808, 11_511_578_624, 0.764, 0.799),
)


def published_values(record: Evaluation) -> dict[PublishedModel, float]:
    """Return the paper's values of what a record measures: k-NN or a linear probe on ImageNet-1K; none otherwise.

    The dataset is known by its name, that of a Hub dataset such as `ILSVRC/imagenet-1k` or of a folder such as
    `imagenet` or `ILSVRC2012`, if no other number of images or classes speaks against it.

    Example:
        >>> birds = Evaluation("run", "384x12", "knn", "knn_accuracy", 0.7, "birds", "test", 100, "2026-11-27")
        >>> published_values(birds)
        {}
    """
    if not is_imagenet(record):
        return {}
    if record.metric == "knn_accuracy":
        return {model: model.knn for model in PUBLISHED}
    if record.metric == "linear_accuracy":
        return {model: model.linear for model in PUBLISHED}
    return {}


def published_points(record: Evaluation, axis: str) -> dict[str, list[tuple[float, float, str]]]:
    """Return cost, value and name of each of the paper's models, by family, beside which a record can be drawn.

    Args:
        record: What was measured.
        axis: `parameters` or `flops`; the paper gives no other cost.
    """
    points: dict[str, list[tuple[float, float, str]]] = {}
    for model, value in published_values(record).items() if axis in ("parameters", "flops") else ():
        points.setdefault(f"paper: {model.family}", []).append((getattr(model, axis), value, model.name))
    return points


def is_imagenet(record: Evaluation) -> bool:
    """Whether a record's dataset is ImageNet-1K, or some of its images."""
    names = {_plain(record.dataset), _plain(record.dataset.rpartition("/")[2])}
    classes = record.settings.get("num_classes", record.details.get("num_classes", _CLASSES))
    return bool(names & _IMAGENET) and classes == _CLASSES and record.test_images <= _TEST_IMAGES


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
