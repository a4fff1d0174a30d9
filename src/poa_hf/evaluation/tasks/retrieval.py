"""Image retrieval: how high images of the same class rank among all others, by cosine similarity of features."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

RANKED_AT_ONCE = 2**25  # similarities of 4 bytes, three times over: as they are, sorted, and as the ranks of some


def retrieval_scores(
    features: Tensor,
    labels: Tensor,
    memory_features: Tensor | None = None,
    memory_labels: Tensor | None = None,
    ks: Sequence[int] = (1, 10),
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Average precision (N,) and precision among the k first (N, number of ks) of each query, float64, from 0 to 1.

    Every memory image of the query's class is relevant. NaN for a query that has none, which means leave out. Images of
    equal similarity share one rank, the last of them, as in scikit-learn: the order of the memory decides nothing.
    (Among the k first, it does.) A normalised copy of the memory is made where it is ranked.

    Args:
        features: (N, D), the queries.
        labels: (N,) integers.
        memory_features: (M, D), what is ranked; by default the queries themselves, each without itself.
        memory_labels: (M,) integers.
        device: where it is computed, by default where the memory is.

    Raises:
        ValueError: for shapes that don't fit, or a k beyond the size of the memory.
    """
    leave_one_out = memory_features is None
    if leave_one_out:
        memory_features, memory_labels = features, labels
    _check(features, labels, memory_features, memory_labels, ks, leave_one_out)
    device = torch.device(device or memory_features.device)
    memory = normalize(memory_features.to(device).float(), dim=1)
    scores = torch.full((len(features), 1 + len(ks)), torch.nan, dtype=torch.float64)
    for label in labels.unique():
        relevant = (memory_labels == label).nonzero()[:, 0].to(device)
        # queries of one class have the same relevant images
        for chosen in (labels == label).nonzero()[:, 0].split(max(1, RANKED_AT_ONCE // len(memory))):
            similarities = normalize(features[chosen].to(device).float(), dim=1) @ memory.T
            if leave_one_out:
                similarities.scatter_(1, chosen.to(device)[:, None], -torch.inf)
            if len(relevant) > leave_one_out:
                scores[chosen.cpu()] = _precisions(similarities, relevant, ks, leave_one_out).cpu()
    return scores[:, 0], scores[:, 1:]


def _precisions(similarities: Tensor, relevant: Tensor, ks: Sequence[int], leave_one_out: bool) -> Tensor:
    """Average precision and precision at each k, (B, 1 + number of ks), of similarities (B, M) and relevant columns."""
    is_relevant = torch.zeros(similarities.shape[1], dtype=torch.bool, device=similarities.device)
    is_relevant[relevant] = True
    found = is_relevant[similarities.topk(max(ks, default=1)).indices].cumsum(dim=1)
    # the lowest of each is the query itself, at minus infinity
    own = _ascending(similarities[:, relevant])[:, int(leave_one_out) :].contiguous()
    everything = _ascending(similarities)[:, int(leave_one_out) :].contiguous()
    # a relevant image's precision: of all that are at least as similar, the share that is relevant
    relevant_above = own.shape[1] - torch.searchsorted(own, own)
    above = everything.shape[1] - torch.searchsorted(everything, own)
    average = (relevant_above / above.double()).mean(dim=1)
    return torch.stack([average, *(found[:, k - 1].double() / k for k in ks)], dim=1)


def _ascending(values: Tensor) -> Tensor:
    if values.device.type == "cpu":  # NumPy's sort is many times faster, as it gives no indices
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(dim=1).values


def _check(
    features: Tensor, labels: Tensor, memory: Tensor, memory_labels: Tensor | None, ks: Sequence[int], leave_out: bool
) -> None:
    if memory.ndim != 2 or features.ndim != 2 or memory.shape[1] != features.shape[1]:
        raise ValueError(
            f"Memory {tuple(memory.shape)} and queries {tuple(features.shape)} can't be compared: "
            "pass (M, D) and (N, D) features of one model."
        )
    if memory_labels is None or memory_labels.shape != memory.shape[:1] or labels.shape != features.shape[:1]:
        raise ValueError(f"{len(features)} queries and {len(memory)} memory features need as many labels.")
    size = len(memory) - leave_out
    if size < 1 or any(not 1 <= k <= size for k in ks):
        raise ValueError(f"The first {list(ks)} can't be counted among {size} images: give k from 1 to that number.")


class RetrievalMap(evaluate.Metric):
    """Mean average precision over queries, and precision among the first k, as an `evaluate` metric.

    Predictions are features (N, D), ranked against the memory at once; only their scores are stored. Gives
    `{"retrieval_map": ..., "retrieval_precision_1": ..., "queries": ...}`: queries without any relevant image in the
    memory count in none of them. Further arguments go to `evaluate.Metric`.
    """

    def __init__(
        self,
        memory_features: Tensor,
        memory_labels: Tensor,
        ks: Sequence[int] = (1, 10),
        device: torch.device | str | None = None,
        **kwargs,
    ):
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

    def add_batch(self, *, predictions, references, **kwargs) -> None:
        """Rank the memory for a batch of features, and keep their scores."""
        features, labels = torch.as_tensor(predictions), torch.as_tensor(references)
        average, at_k = retrieval_scores(features, labels, *self.memory, self.ks, self.device)
        scores = torch.cat([average[:, None], at_k], dim=1)
        super().add_batch(predictions=scores.numpy(), references=labels.cpu(), **kwargs)

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, float]:
        scores = torch.tensor(predictions, dtype=torch.float64)
        names = ["retrieval_map", *(f"retrieval_precision_{k}" for k in self.ks)]
        queries = int((~scores[:, 0].isnan()).sum())
        return dict(zip(names, scores.nanmean(dim=0).tolist(), strict=True)) | {"queries": queries}
