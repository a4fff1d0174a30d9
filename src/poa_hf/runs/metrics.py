"""The metrics: their names in a column, in words and on the Hub, how values are written, and which are better."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .evaluations import Evaluation


@dataclass(frozen=True)
class Metric:
    """A metric: its names, how its values are written, and which of them are better.

    In `title` and `words`, the name of a setting in braces stands for its value, such as `{k}` for the number of
    neighbours, and `{labels}` for the share of the labels.

    Args:
        task: The task of `poa evaluate` that measures it.
        title: The title of a column, a few characters long.
        words: The name in running text.
        hub_type: The metric's identifier in the metadata of a model card.
        hub_task: The task in that metadata.
        higher_is_better: Whether a higher value is better; False for errors, such as an RMSE.
        is_share: Whether values are shares, which are shown in per cent; others are shown as they are, and `words` says
            in which unit.
        usual: Of a metric that is measured in several ways, the settings of the one that counts before the others.
    """

    task: str
    title: str
    words: str
    hub_type: str
    hub_task: str = "image-feature-extraction"
    higher_is_better: bool = True
    is_share: bool = True
    usual: Mapping[str, Any] = field(default_factory=dict)

    def shown(self, value: float, unit: bool = True) -> str:
        """Return a value as it is shown.

        Args:
            value: The value.
            unit: Whether the unit follows, where it is per cent; leave it out where the heading names it.

        Example:
            >>> METRICS["knn_accuracy"].shown(0.4136)
            '41.4 %'
        """
        if not self.is_share:
            return f"{value:.3g}"
        return f"{100 * value:.1f}" + (" %" if unit else "")

    def is_usual(self, settings: Mapping[str, Any]) -> bool:
        """Whether settings of a record are the usual ones, where there are any."""
        return all(settings.get(name) == value for name, value in self.usual.items())

    def worth(self, value: float) -> float:
        """Return a number that is higher the better the value is."""
        return value if self.higher_is_better else -value


_CLASSIFICATION = ("accuracy", "image-classification")
_SEGMENTATION, _DEPTH = "image-segmentation", "depth-estimation"

# In the order in which they are shown.
METRICS = {
    "knn_accuracy": Metric("knn", "{k}-NN", "{k}-NN accuracy", *_CLASSIFICATION),
    "linear_accuracy": Metric("linear", "linear{probe}", "linear probe accuracy{probe}", *_CLASSIFICATION),
    "lowshot_accuracy": Metric("lowshot", "{labels} labels", "accuracy with {labels} of the labels", *_CLASSIFICATION),
    "clustering_accuracy": Metric("clustering", "ACC", "clustering accuracy", "clustering_accuracy"),
    "clustering_ari": Metric("clustering", "ARI", "clustering adjusted Rand index", "clustering_ari"),
    "clustering_nmi": Metric("clustering", "NMI", "clustering NMI", "clustering_nmi"),
    "retrieval_map": Metric("retrieval", "mAP", "retrieval mAP", "retrieval_map"),
    "retrieval_precision": Metric("retrieval", "P@{k}", "retrieval precision at {k}", "retrieval_precision"),
    "occlusion_accuracy": Metric(
        "occlusion",
        "occlusion ({dropped})",
        "{k}-NN accuracy with {dropped} patches dropped",
        *_CLASSIFICATION,
        usual={"dropped": "random"},
    ),
    "shuffle_accuracy": Metric("shuffle", "shuffle", "{k}-NN accuracy with shuffled patches", *_CLASSIFICATION),
    "corruptions_accuracy": Metric(
        "corruptions", "corruptions", "{k}-NN accuracy on corrupted images", *_CLASSIFICATION
    ),
    "backgrounds_accuracy": Metric(
        "backgrounds",
        "BG {kind}",
        "{k}-NN accuracy on {kind} images",
        *_CLASSIFICATION,
        usual={"kind": "mixed_rand"},
    ),
    "background_gap": Metric(
        "backgrounds",
        "BG gap",
        "{k}-NN accuracy lost with backgrounds of other classes",
        "background_gap",
        higher_is_better=False,
    ),
    "segmentation_miou": Metric("segmentation", "mIoU", "segmentation mIoU", "mean_iou", _SEGMENTATION),
    "segmentation_accuracy": Metric(
        "segmentation", "pixels", "segmentation pixel accuracy", "pixel_accuracy", _SEGMENTATION
    ),
    "segmentation_knn_miou": Metric(
        "segmentation", "{k}-NN mIoU", "{k}-NN segmentation mIoU", "mean_iou", _SEGMENTATION
    ),
    "segmentation_knn_accuracy": Metric(
        "segmentation", "{k}-NN pixels", "{k}-NN segmentation pixel accuracy", "pixel_accuracy", _SEGMENTATION
    ),
    "depth_rmse": Metric(
        "depth",
        "RMSE",
        "depth RMSE in the unit of the depth maps",
        "rmse",
        _DEPTH,
        higher_is_better=False,
        is_share=False,
    ),
    "depth_delta1": Metric("depth", "δ1", "depth within a factor of 1.25 (δ1)", "delta1", _DEPTH),
    "correspondence_accuracy": Metric(
        "correspondence", "found ({within} px)", "patches found within {within} pixels", "pck", "keypoint-detection"
    ),
}


def check_measure(name: str) -> None:
    """Raise a ValueError for what is neither a task that measures something nor a metric."""
    tasks = list(dict.fromkeys(metric.task for metric in METRICS.values()))
    if name not in tasks and name not in METRICS:
        raise ValueError(f"{name!r} is neither a task nor a metric: choose from {', '.join(tasks)}.")


def measure_in_words(name: str | None) -> str:
    """Return a task or metric in running text: `k-NN`, `a linear probe`, `segmentation`, `clustering nmi`."""
    return {"knn": "k-NN", "linear": "a linear probe"}.get(name or "knn", str(name).replace("_", " "))


def metric_of(record: Evaluation) -> Metric:
    """The metric of a record; one that is not in the table is called as in the record."""
    return METRICS.get(record.metric) or Metric(record.task, "{metric}", "{metric}", record.metric)


def column_title(record: Evaluation) -> str:
    """A record's metric in a few characters: `20-NN`, `linear`, `1 % labels`, `NMI`, `mAP`, ...

    Example:
        >>> column_title(Evaluation("run", "384x12", "knn", "knn_accuracy", 0.5, "birds", "test", 100, "2026-11-26",
        ...                         settings={"k": 20}))
        '20-NN'
    """
    return _filled(metric_of(record).title, record)


def metric_name(record: Evaluation) -> str:
    """A record's metric in words: `20-NN accuracy`, `accuracy with 1 % of the labels`."""
    return _filled(metric_of(record).words, record)


def display_order(record: Evaluation) -> tuple[int, str, float, float, float]:
    """A key that sorts records as they are shown: in the table's order, then by k, share of labels and distance."""
    place = list(METRICS).index(record.metric) if record.metric in METRICS else len(METRICS)
    return place, record.metric, *(record.settings.get(name, 0) for name in ("k", "label_share", "within"))


def _probe(settings: dict[str, Any]) -> str:
    """Return in what a linear probe differs from the usual one, in brackets."""
    protocol, views = settings.get("protocol"), settings.get("augmented_views")
    parts = ([str(protocol)] if protocol else []) + ([f"{views} views"] if views and not protocol else [])
    return f" ({', '.join(parts)})" if parts else ""


def _filled(template: str, record: Evaluation) -> str:
    share = record.settings.get("label_share")
    names = record.settings | {"labels": "few" if share is None else f"{100 * share:g} %", "metric": record.metric}
    names["probe"] = _probe(record.settings)
    # a setting that a record lacks, as one of an older version may, is called by its name
    return re.sub(r"\{(\w+)\}", lambda match: str(names.get(match[1], match[1])), template)
