"""Image retrieval: how high images of the same class rank among all others, by cosine similarity of features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import normalize

from ...ranges import COUNT
from ..finite import check_finite
from .task import LabelledFeatures, Options, Score, Task, check_numbers

# Similarities of 4 bytes that are held three times: unsorted, sorted, and as the ranks of the relevant ones.
RANKED_AT_ONCE = 2**25


@dataclass(frozen=True)
class RetrievalOptions(Options):
    """The options of retrieval.

    Args:
        retrieval_k: Numbers of first images whose precision is measured; those beyond the train images are left out.
    """

    retrieval_k: tuple[int, ...] = (1, 10)


def _run(
    train: LabelledFeatures, test: LabelledFeatures, num_classes: int, options: RetrievalOptions, device: torch.device
) -> list[Score]:
    ks = [k for k in dict.fromkeys(options.retrieval_k) if k <= len(train.labels)]
    average, at_k = retrieval_scores(test.features, test.labels, train.features, train.labels, ks, device)
    means = torch.cat([average[:, None], at_k], dim=1).nanmean(dim=0).tolist()
    details = {"queries": int((~average.isnan()).sum())}
    scores = [Score("retrieval_map", means[0], {}, details, average)]
    return scores + [
        Score("retrieval_precision", mean, {"k": k}, details, outcomes)
        for k, mean, outcomes in zip(ks, means[1:], at_k.unbind(dim=1), strict=True)
    ]


def _check(options: RetrievalOptions, train_images: int | None) -> None:
    if options.retrieval_k not in ((), []):  # mAP alone
        check_numbers("retrieval_k", options.retrieval_k, COUNT)


RETRIEVAL = Task("retrieval", _run, check=_check)


def retrieval_scores(
    features: Tensor,
    labels: Tensor,
    memory_features: Tensor | None = None,
    memory_labels: Tensor | None = None,
    ks: Sequence[int] = (1, 10),
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Rank the memory for each query: average precision, and precision among the first k.

    Every memory image of the query's class is relevant. For average precision, images of equal similarity share the
    last of their ranks, as in scikit-learn, so the order of the memory does not matter. (Among the first k, it does.)
    A normalised copy of the memory is made on the device.

    Args:
        features: (N, D), the queries.
        labels: (N,) integers.
        memory_features: (M, D), what is ranked; by default the queries themselves, each without itself.
        memory_labels: (M,) integers.
        ks: The numbers of first images.
        device: Where the memory is ranked, by default where it is.

    Returns:
        Average precision (N,) and precision among the first k (N, number of ks), float64, from 0 to 1; NaN for a query
        without any relevant image.

    Raises:
        ValueError: For shapes that do not match, a k beyond the size of the memory, or features that are not finite.
    """
    leave_one_out = memory_features is None
    if memory_features is None:
        memory_features, memory_labels = features, labels
    memory_labels = _checked_labels(features, labels, memory_features, memory_labels, ks, leave_one_out)
    device = torch.device(device or memory_features.device)
    memory = normalize(memory_features.to(device).float(), dim=1)  # (M, D)
    scores = torch.full((len(features), 1 + len(ks)), torch.nan, dtype=torch.float64)
    for label in labels.unique():
        relevant = (memory_labels == label).nonzero()[:, 0].to(device)
        # queries of one class have the same relevant images
        for chosen in (labels == label).nonzero()[:, 0].split(max(1, RANKED_AT_ONCE // len(memory))):
            similarities = normalize(features[chosen].to(device).float(), dim=1) @ memory.T  # (B, M)
            if leave_one_out:
                similarities.scatter_(1, chosen.to(device)[:, None], -torch.inf)
            if len(relevant) > leave_one_out:
                scores[chosen.cpu()] = _precisions(similarities, relevant, ks, leave_one_out).cpu()
    return scores[:, 0], scores[:, 1:]


def _precisions(similarities: Tensor, relevant: Tensor, ks: Sequence[int], leave_one_out: bool) -> Tensor:
    """Return average precision and the precision at each k, (B, 1 + number of ks).

    Args:
        similarities: (B, M).
        relevant: (R,), the columns of relevant images.
    """
    is_relevant = torch.zeros(similarities.shape[1], dtype=torch.bool, device=similarities.device)
    is_relevant[relevant] = True
    hits = is_relevant[similarities.topk(max(ks, default=1)).indices].cumsum(dim=1)  # (B, max k)
    # the lowest of each row is the query itself, at minus infinity
    of_relevant = _ascending(similarities[:, relevant])[:, int(leave_one_out) :].contiguous()  # (B, R)
    of_all = _ascending(similarities)[:, int(leave_one_out) :].contiguous()  # (B, M)
    # the precision at a relevant image: of all that are at least as similar, the share that is relevant
    relevant_above = of_relevant.shape[1] - torch.searchsorted(of_relevant, of_relevant)
    all_above = of_all.shape[1] - torch.searchsorted(of_all, of_relevant)
    average = (relevant_above / all_above.double()).mean(dim=1)
    return torch.stack([average, *(hits[:, k - 1].double() / k for k in ks)], dim=1)


def _ascending(values: Tensor) -> Tensor:
    if values.device.type == "cpu":  # NumPy's sort is many times faster, as it gives no indices
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(dim=1).values


def _checked_labels(
    features: Tensor, labels: Tensor, memory: Tensor, memory_labels: Tensor | None, ks: Sequence[int], leave_out: bool
) -> Tensor:
    """Return the labels of the memory; raise a ValueError if the arguments do not match."""
    if memory.ndim != 2 or features.ndim != 2 or memory.shape[1] != features.shape[1]:
        raise ValueError(
            f"Memory {tuple(memory.shape)} and queries {tuple(features.shape)} cannot be compared: "
            "pass (M, D) and (N, D) features of one model."
        )
    if memory_labels is None or memory_labels.shape != memory.shape[:1] or labels.shape != features.shape[:1]:
        raise ValueError(f"{len(features)} queries and {len(memory)} memory features need as many labels: pass them.")
    size = len(memory) - leave_out
    if size < 1 or any(not 1 <= k <= size for k in ks):
        raise ValueError(f"The first {list(ks)} cannot be counted among {size} images: give k from 1 to that number.")
    check_finite(features, memory)
    return memory_labels


class RetrievalMap(evaluate.Metric):
    """Mean average precision over queries, and precision among the first k, as an `evaluate` metric.

    The predictions it takes are features (B, D), which are ranked against the memory at once; only their scores are
    stored. The result is `{"retrieval_map": ..., "retrieval_precision_1": ..., "queries": ...}`. Queries without any
    relevant image in the memory are left out of all scores.

    Args:
        memory_features: (M, D).
        memory_labels: (M,).
        ks: The numbers of first images.
        device: Where the memory is ranked, by default where it is.
        **kwargs: Arguments of `evaluate.Metric`.
    """

    def __init__(
        self,
        memory_features: ArrayLike,
        memory_labels: ArrayLike,
        ks: Sequence[int] = (1, 10),
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.memory = torch.as_tensor(memory_features), torch.as_tensor(memory_labels)
        self.ks, self.device = list(ks), device

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Mean average precision of images ranked by cosine similarity of frozen features.",
            citation="Manning, Raghavan and Schuetze 2008, Introduction to Information Retrieval, chapter 8.",
            inputs_description="\n\npredictions: (N, D) features; references: (N,) labels.",
            # the table's columns, not the arguments: average precision, then precision for each k
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def add_batch(self, *, predictions: ArrayLike, references: ArrayLike, **kwargs: Any) -> None:
        """Rank the memory for features (B, D), and keep their scores."""
        features, labels = torch.as_tensor(predictions), torch.as_tensor(references)
        average, at_k = retrieval_scores(features, labels, *self.memory, self.ks, self.device)
        scores = torch.cat([average[:, None], at_k], dim=1)  # (B, 1 + number of ks)
        super().add_batch(predictions=scores.numpy(), references=labels.cpu(), **kwargs)

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, float]:
        scores = torch.tensor(predictions, dtype=torch.float64)
        names = ["retrieval_map", *(f"retrieval_precision_{k}" for k in self.ks)]
        queries = int((~scores[:, 0].isnan()).sum())
        return dict(zip(names, scores.nanmean(dim=0).tolist(), strict=True)) | {"queries": queries}
