"""k-nearest-neighbour classification of frozen features: what DINO, iBOT and POA report first.

An image is compared by cosine with the labelled features of the training set (the memory), and its k nearest vote with
weight exp(similarity / temperature). No training, so the number says what is in the features alone.

Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4;
DINO's eval_knn.py uses the same weights, with k = 10, 20, 100 and 200 and temperature 0.07.
"""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate
import torch
from torch import Tensor
from torch.nn.functional import normalize


def knn_predict(
    memory_features: Tensor,
    memory_labels: Tensor,
    features: Tensor,
    k: int = 20,
    temperature: float = 0.07,
    num_classes: int | None = None,
    chunk_size: int = 1024,
) -> Tensor:
    """The class that the nearest neighbours in the memory vote for: (N,) int64, on the memory's device.

    `knn_predictions` for one k: see there.
    """
    return knn_predictions(memory_features, memory_labels, features, [k], temperature, num_classes, chunk_size)[k]


def knn_predictions(
    memory_features: Tensor,
    memory_labels: Tensor,
    features: Tensor,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    num_classes: int | None = None,
    chunk_size: int = 1024,
    device: torch.device | str | None = None,
) -> dict[int, Tensor]:
    """For each k, the class that the k nearest neighbours in the memory vote for: (N,) int64, on the memory's device.

    One search, for the largest k, serves all. Of classes with equal votes the smallest label wins. The largest matrix
    ever built is (chunk_size, chunk_size + k), plus (chunk_size, num_classes) for the votes: memory and queries may
    both be large.

    Args:
        memory_features: (M, D), of any length; they are normalised here.
        memory_labels: (M,) integers in [0, num_classes).
        features: (N, D), the queries.
        ks: how many neighbours vote.
        temperature: the smaller, the more the nearest ones count.
        num_classes: by default the largest label + 1.
        chunk_size: how many queries, and how many memory features, at a time.
        device: where the search runs, by default where the memory is; chunks are brought there one by one, so that a
            memory larger than a GPU's can be searched by it.

    Raises:
        ValueError: for k beyond the size of the memory, shapes that don't fit, labels out of range, or features that
            are not finite.
    """
    for k in ks:
        _check(memory_features, memory_labels, features, k, temperature, chunk_size)
    num_classes = int(memory_labels.max()) + 1 if num_classes is None else num_classes
    if memory_labels.min() < 0 or memory_labels.max() >= num_classes:
        raise ValueError(f"A memory label is not in [0, {num_classes}): drop unlabelled images or raise num_classes.")
    device = torch.device(device or memory_features.device)
    memory_labels = memory_labels.to(device, torch.int64)
    predictions: dict[int, list[Tensor]] = {k: [] for k in ks}
    for queries in features.split(chunk_size):
        similarities, indices = _nearest(memory_features, queries.to(device), max(ks), chunk_size)
        for k in ks:
            votes = _votes(similarities[:, :k], indices[:, :k], memory_labels, temperature, num_classes)
            predictions[k].append(votes.argmax(1).to(memory_features.device))
    return {k: torch.cat(parts) for k, parts in predictions.items()}


def _check(memory: Tensor, labels: Tensor, features: Tensor, k: int, temperature: float, chunk_size: int) -> None:
    if memory.ndim != 2 or features.ndim != 2 or memory.shape[1] != features.shape[1]:
        raise ValueError(
            f"Memory {tuple(memory.shape)} and queries {tuple(features.shape)} can't be compared: "
            "pass (M, D) and (N, D) features of one model."
        )
    if labels.shape != memory.shape[:1]:
        raise ValueError(f"{len(memory)} memory features need as many labels, but these are {tuple(labels.shape)}.")
    if not 1 <= k <= len(memory):
        raise ValueError(f"k = {k} neighbours can't be found among {len(memory)}: choose k from 1 to that number.")
    if temperature <= 0 or chunk_size < 1:
        raise ValueError(f"temperature ({temperature}) and chunk_size ({chunk_size}) must be positive.")


def _nearest(memory: Tensor, queries: Tensor, k: int, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities and memory indices of the k nearest: both (B, k), nearest first."""
    queries = normalize(queries.float(), dim=1)
    similarities = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(memory), chunk_size):
        # Normalised chunk by chunk, again for each chunk of queries: cheaper than a second copy of the memory.
        chunk = normalize(memory[start : start + chunk_size].to(queries.device).float(), dim=1)
        found, position = (queries @ chunk.T).topk(min(k, len(chunk)))
        similarities = torch.cat([similarities, found], dim=1)
        indices = torch.cat([indices, position + start], dim=1)
        similarities, kept = similarities.topk(min(k, similarities.shape[1]))
        indices = indices.gather(1, kept)
    # topk takes NaN for the largest value, so none is lost on the way here.
    if similarities.isnan().any():
        raise ValueError("Some features are not finite: the model's weights, or its input, are broken.")
    return similarities, indices


def _votes(similarities: Tensor, indices: Tensor, labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    """(B, num_classes) sums of exp(similarity / temperature), up to a factor per query."""
    # Relative to the nearest one, so that a small temperature does not overflow.
    weights = ((similarities - similarities[:, :1]) / temperature).exp()
    return weights.new_zeros(len(weights), num_classes).scatter_add_(1, labels[indices], weights)


class KnnAccuracy(evaluate.Metric):
    """The share of images whose neighbours vote for the right class, as an `evaluate` metric that needs no network.

    What it is given as predictions are features; they vote at once and only the classes are stored, so a whole
    validation set's features never lie in memory (nor in evaluate's tables, which are slow with vectors):

        metric = KnnAccuracy(memory_features, memory_labels)
        for batch in validation:
            metric.add_batch(predictions=features, references=labels)  # (B, D) and (B,)
        metric.compute()  # {"knn_accuracy": 0.768}

    `metric.compute(predictions=features, references=labels)` does both. With several `k`, one search serves all:
    `KnnAccuracy(features, labels, k=[10, 20])` gives `{"knn_accuracy_10": ..., "knn_accuracy_20": ...}`. The arguments
    are those of `knn_predictions`; further ones (`num_process`, `process_id`, `experiment_id`, ...) go to
    `evaluate.Metric`.

    Raises:
        ValueError: as `knn_predictions` does, when features are added.
    """

    def __init__(
        self,
        memory_features: Tensor,
        memory_labels: Tensor,
        k: int | Sequence[int] = 20,
        temperature: float = 0.07,
        num_classes: int | None = None,
        chunk_size: int = 1024,
        device: torch.device | str | None = None,
        **kwargs,
    ):
        self.ks = [k] if isinstance(k, int) else list(k)
        self.names = ["knn_accuracy"] if isinstance(k, int) else [f"knn_accuracy_{k}" for k in self.ks]
        super().__init__(**kwargs)
        self.memory_features = torch.as_tensor(memory_features)
        self.memory_labels = torch.as_tensor(memory_labels)
        self.options = {
            "temperature": temperature,
            "num_classes": num_classes,
            "chunk_size": chunk_size,
            "device": device,
        }

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy of a weighted k-nearest-neighbour vote over frozen features (cosine similarity).",
            citation="Wu et al. 2018, Unsupervised Feature Learning via Non-Parametric Instance Discrimination.",
            inputs_description="\n\npredictions: (N, D) features; references: (N,) labels.",
            # The table's columns, not the arguments: for each k the class that the features were voted into.
            features=datasets.Features(
                {"predictions": datasets.List(datasets.Value("int64")), "references": datasets.Value("int64")}
            ),
        )

    def add_batch(self, *, predictions, references, **kwargs) -> None:
        """Let a batch of features vote, and keep their classes and the labels."""
        features = torch.as_tensor(predictions)
        classes = knn_predictions(self.memory_features, self.memory_labels, features, self.ks, **self.options)
        classes = torch.stack([classes[k] for k in self.ks], dim=1).cpu()
        super().add_batch(predictions=classes.numpy(), references=torch.as_tensor(references).cpu(), **kwargs)

    def add(self, *, prediction, reference, **kwargs) -> None:
        """Let one image's features (D,) vote, and keep the class and the label."""
        self.add_batch(predictions=torch.as_tensor(prediction)[None], references=[reference], **kwargs)

    def _compute(self, predictions: list[list[int]], references: list[int]) -> dict[str, float]:
        correct = torch.tensor(predictions) == torch.tensor(references)[:, None]
        return dict(zip(self.names, correct.double().mean(dim=0).tolist(), strict=True))
