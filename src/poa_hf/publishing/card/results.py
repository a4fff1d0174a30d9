"""Results of evaluations on a card: tables for readers, metadata for the Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence

from huggingface_hub import EvalResult

from ...locations import is_hub_id
from ...runs.comparison import images_of
from ...runs.evaluations import Evaluation
from ...runs.metrics import display_order, metric_name, metric_of
from .markdown import escape, table

_HEAD = ("measure", "value")


def results_text(records: Sequence[Evaluation]) -> str:
    """Return a table for each dataset and number of images, with every measure of one size.

    Args:
        records: The records that count, one per measure (`CardFacts.results`).
    """
    groups: dict[tuple, list[Evaluation]] = {}
    # clustering uses no train images, so it joins the others on the same test images
    for record in sorted(records, key=lambda record: (record.test_set, record.train_images is None)):
        test = (*record.test_set, record.test_images)
        key = (*test, record.train_split, record.train_images)
        if record.train_images is None:
            key = next((other for other in groups if other[: len(test)] == test), key)
        groups.setdefault(key, []).append(record)
    parts = []
    for measured in groups.values():
        first = measured[0]
        title = f"**{escape(first.dataset)}**" + (f" ({escape(first.dataset_config)})" if first.dataset_config else "")
        # only where one is known, so that the card of older records stays as it was
        head = ("measure", "value", "95 % interval") if any(record.interval for record in measured) else _HEAD
        rows = [
            (escape(metric_name(record)), metric_of(record).shown(record.value), _interval(record))[: len(head)]
            for record in sorted(measured, key=display_order)
        ]
        remarks = _reservations(measured)
        text = f"{title}, {escape(images_of(first))}" + (f".{remarks}" if remarks else ":")
        parts.append(f"{text}\n\n" + table(head, rows, right=range(1, len(head))))
    return "\n\n".join(parts)


def eval_results(records: Sequence[Evaluation]) -> list[EvalResult]:
    """Return the results of one size for the metadata: from 0 to 1, with four digits.

    Each dataset has every measure, but k-NN only with the first k. The Hub wants the id of a dataset: a folder's
    name is turned into one, with dashes for characters that ids cannot have.

    Args:
        records: The records that count, one per measure and the one that counts most first (`CardFacts.results`).
    """
    knn: dict[tuple, Evaluation] = {}
    for record in records:
        if record.metric == "knn_accuracy":
            knn.setdefault(record.test_set, record)
    shown = [record for record in records if record.metric != "knn_accuracy" or record is knn[record.test_set]]
    return [
        EvalResult(
            task_type=metric_of(record).hub_task,
            dataset_type=_as_hub_id(record.dataset),
            dataset_name=" ".join(record.dataset.split()) or "dataset",
            dataset_config=record.dataset_config,
            dataset_split=record.test_split,
            metric_type=metric_of(record).hub_type,
            metric_name=metric_name(record),
            metric_value=round(float(record.value), 4),
        )
        for record in sorted(shown, key=lambda record: (record.test_set, display_order(record)))
    ]


def _interval(record: Evaluation) -> str:
    if record.interval is None:
        return ""
    low, high = record.interval
    shown = metric_of(record).shown
    return f"{shown(low, unit=False)} to {shown(high)}"


def _reservations(records: Sequence[Evaluation]) -> str:
    """Return sentences, each after a space, about test images that are not as new to the model as they should be."""
    text = ""
    coinciding = max((record.coinciding_images or 0 for record in records), default=0)
    if coinciding:
        verb = "is also a train image" if coinciding == 1 else "are also train images"
        text += f" {coinciding:,} of the test images {verb}, so the values are too high."
    if any(record.pretrained_on_test for record in records):
        text += " The model was pre-trained on the split that these test images are of, without labels."
    return text + "".join(dict.fromkeys(_protocol(record) for record in records if record.settings.get("protocol")))


def _protocol(record: Evaluation) -> str:
    """Return a sentence after a space on the protocol of a linear evaluation."""
    wanted = record.settings
    return (
        f" The linear probe ({escape(str(wanted['protocol']))}) is that of the authors' evaluation "
        f"({wanted.get('steps')} steps of {wanted.get('batch_size')} images, {wanted.get('augmented_views')} augmented "
        "views of each): the best of 52 classifiers on the test images counts, which makes it a little too high."
    )


def _as_hub_id(name: str) -> str:
    if is_hub_id(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", name.encode("ascii", "ignore").decode())
    plain = re.sub(r"\.{2,}", ".", plain)[:96].strip("-._")
    return plain if is_hub_id(plain) else "dataset"
