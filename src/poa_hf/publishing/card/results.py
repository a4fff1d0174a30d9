"""Evaluations as a card gives them: to readers as tables, to the Hub as metadata."""

from __future__ import annotations

import re
from collections.abc import Sequence

from huggingface_hub import EvalResult

from ...runs.evaluations import Evaluation
from .markdown import escape, table
from .metadata import is_hub_id

_NAMES = {
    "linear_accuracy": "linear probe accuracy",
    "clustering_accuracy": "clustering accuracy",
    "clustering_nmi": "clustering NMI",
    "clustering_ari": "clustering adjusted Rand index",
    "retrieval_map": "retrieval mAP",
}
_CLASSIFICATION = ("knn_accuracy", "linear_accuracy", "lowshot_accuracy")
_USUAL_K = 20


def comparable(records: Sequence[Evaluation]) -> list[Evaluation]:
    """Of measurements that differ in the number of images, the seed or the day only, the one of the most images, then
    the latest; by dataset and measure."""
    best: dict[tuple, Evaluation] = {}
    for record in sorted(records, key=_preference):
        best[_dataset_of(record), record.test_split, measure_name(record)] = record
    return [best[key] for key in sorted(best, key=lambda key: (key[:2], _order(best[key])))]


def measure_name(record: Evaluation) -> str:
    """What was measured, in words: `20-NN accuracy`, `accuracy with 1 % of the labels`."""
    settings = record.settings
    if record.metric == "knn_accuracy":
        return f"{settings.get('k', 'k')}-NN accuracy"
    if record.metric == "lowshot_accuracy" and "label_share" in settings:
        return f"accuracy with {100 * settings['label_share']:g} % of the labels"
    if record.metric == "retrieval_precision" and "k" in settings:
        return f"retrieval precision at {settings['k']}"
    return _NAMES.get(record.metric, record.metric)


def results_text(records: Sequence[Evaluation]) -> str:
    """A table for each dataset and number of images; all that was measured."""
    groups: dict[tuple, list[Evaluation]] = {}
    # clustering uses no train images and goes with the others on the same test images
    for record in sorted(comparable(records), key=lambda record: record.train_images is None):
        test = (*_dataset_of(record), record.test_split, record.test_images)
        key = (*test, record.train_split, record.train_images)
        if record.train_images is None:
            key = next((other for other in groups if other[: len(test)] == test), key)
        groups.setdefault(key, []).append(record)
    parts = []
    for (name, config, test_split, test_images, train_split, train_images), measured in groups.items():
        title = f"**{escape(name)}**" + (f" ({escape(config)})" if config else "")
        images = f"{test_images:,} images of {escape(test_split)}"
        if train_images is not None:
            images += f", against {train_images:,} of {escape(train_split or 'train')}"
        rows = [(escape(measure_name(record)), f"{100 * record.value:.1f} %") for record in measured]
        parts.append(f"{title}, {images}:\n\n" + table(("frozen features", "value"), rows, right=[1]))
    return "\n\n".join(parts)


def eval_results(records: Sequence[Evaluation]) -> list[EvalResult]:
    """What goes into the metadata: of each dataset every measure, k-NN with one k alone, that nearest to 20. From 0
    to 1, with four digits.

    The Hub wants the id of a dataset: a folder's name is written as one, with dashes for what ids may not have.
    """
    chosen = comparable(records)
    ks: dict[tuple, int] = {}
    for record in chosen:
        if record.metric == "knn_accuracy":
            key, k = (_dataset_of(record), record.test_split), record.settings.get("k", _USUAL_K)
            ks[key] = min(ks.get(key, k), k, key=lambda k: (abs(k - _USUAL_K), k))
    results = []
    for record in chosen:
        key = (_dataset_of(record), record.test_split)
        if record.metric == "knn_accuracy" and record.settings.get("k", _USUAL_K) != ks[key]:
            continue
        classification = record.metric in _CLASSIFICATION
        results.append(
            EvalResult(
                task_type="image-classification" if classification else "image-feature-extraction",
                dataset_type=_as_hub_id(record.dataset),
                dataset_name=" ".join(record.dataset.split()) or "dataset",
                dataset_config=record.dataset_config,
                dataset_split=record.test_split,
                metric_type="accuracy" if classification else record.metric,
                metric_name=measure_name(record),
                metric_value=round(float(record.value), 4),
            )
        )
    return results


def _preference(record: Evaluation) -> tuple:
    return record.test_images, record.train_images or 0, record.date, record.key


def _dataset_of(record: Evaluation) -> tuple[str, str]:
    return record.dataset, record.dataset_config or ""


def _order(record: Evaluation) -> tuple:
    """k-NN, the probe, then the others; by number within each."""
    rank = _CLASSIFICATION.index(record.metric) if record.metric in _CLASSIFICATION else len(_CLASSIFICATION)
    return rank, record.metric, record.settings.get("k", 0), record.settings.get("label_share", 0)


def _as_hub_id(name: str) -> str:
    if is_hub_id(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", name.encode("ascii", "ignore").decode())
    plain = re.sub(r"\.{2,}", ".", plain)[:96].strip("-._")
    return plain if is_hub_id(plain) else "dataset"
