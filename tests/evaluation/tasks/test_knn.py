import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from poa_hf.evaluation.tasks.knn import KnnAccuracy, knn_predictions


def knn_predict(memory, labels, queries, k: int = 20, *args, **options) -> torch.Tensor:
    return knn_predictions(memory, labels, queries, [k], *args, **options)[k]


@pytest.fixture(scope="module")
def clusters() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Seven overlapping classes: memory (300, 16), its labels, queries (120, 16), their labels."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(7, 16, generator=generator)
    labels = torch.randint(0, 7, (420,), generator=generator)
    features = centres[labels] + 1.5 * torch.randn(420, 16, generator=generator)
    features *= torch.rand(420, 1, generator=generator) + 0.5  # lengths must not matter
    return features[:300], labels[:300], features[300:], labels[300:]


@pytest.mark.parametrize("k", [1, 5, 20, 300])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_predictions_equal_scikit_learn(clusters, k, temperature):
    memory, labels, queries, _ = clusters
    reference = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / temperature)
    ).fit(memory.double().numpy(), labels.numpy())
    expected = reference.predict(queries.double().numpy())
    for chunk_size in (1024, 300, 64, 13):  # also chunks smaller than k
        predicted = knn_predict(memory, labels, queries, k, temperature, chunk_size=chunk_size)
        assert predicted.dtype == torch.int64
        assert predicted.tolist() == expected.tolist()


def test_the_whole_similarity_matrix_is_never_built(clusters, monkeypatch):
    memory, labels, queries, _ = clusters
    sizes, matmul = [], torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: sizes.append(matmul(a, b).shape) or matmul(a, b))
    knn_predict(memory, labels, queries, chunk_size=50)
    assert max(rows for rows, _ in sizes) <= 50 and max(columns for _, columns in sizes) <= 50


def test_the_nearest_weigh_most():
    memory = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels = torch.tensor([0, 1, 1])
    query = torch.tensor([[1.0, 0.7]])
    assert knn_predict(memory, labels, query, k=3, temperature=0.07).tolist() == [0]
    assert knn_predict(memory, labels, query, k=3, temperature=10.0).tolist() == [1]
    assert knn_predict(memory, labels, query, k=3, temperature=1e-6).tolist() == [0]  # no overflow


def test_equal_votes_go_to_the_smallest_label():
    memory = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    for labels in ([3, 1], [1, 3]):
        assert knn_predict(memory, torch.tensor(labels), torch.tensor([[1.0, 1.0]]), k=2).tolist() == [1]


def test_no_queries_and_half_precision(clusters):
    memory, labels, queries, _ = clusters
    assert knn_predict(memory, labels, queries[:0]).shape == (0,)
    half = knn_predict(memory.bfloat16(), labels.int(), queries.bfloat16(), num_classes=100)
    assert (half == knn_predict(memory, labels, queries)).float().mean() > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ks": [301]}, "k = 301 neighbours cannot be found among 300"),
        ({"ks": [0]}, "k = 0"),
        ({"temperature": 0.0}, "must be positive"),
        ({"num_classes": 3}, "raise num_classes"),
        ({"memory_labels": torch.full((300,), -1)}, "drop unlabelled"),
        ({"memory_labels": torch.zeros(299, dtype=torch.int64)}, "as many labels"),
        ({"features": torch.zeros(4, 8)}, "cannot be compared"),
        ({"features": torch.full((4, 16), torch.nan)}, "not finite"),
        ({"memory_features": torch.full((300, 16), torch.inf)}, "not finite"),
    ],
)
def test_what_makes_no_sense_is_refused(clusters, change, message):
    memory, labels, queries, _ = clusters
    arguments = {"memory_features": memory, "memory_labels": labels, "features": queries, "ks": [20]} | change
    with pytest.raises(ValueError, match=message):
        knn_predictions(**arguments)


def test_metric_counts_what_scikit_learn_counts(clusters, tmp_path):
    memory, labels, queries, truth = clusters
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = reference.fit(memory.numpy(), labels.numpy()).score(queries.numpy(), truth.numpy())
    metric = KnnAccuracy(memory, labels, cache_dir=str(tmp_path))
    assert metric.compute(predictions=queries, references=truth) == {"knn_accuracy": pytest.approx(expected)}
    for features, classes in zip(queries.split(50), truth.split(50), strict=True):
        metric.add_batch(predictions=features.numpy(), references=classes.tolist())
    assert metric.compute() == {"knn_accuracy": pytest.approx(expected)}
    for feature, label in zip(queries, truth, strict=True):
        metric.add(prediction=feature, reference=label)
    assert metric.compute() == {"knn_accuracy": pytest.approx(expected)}


def test_metric_takes_the_options_of_the_vote(clusters, tmp_path):
    memory, labels, queries, truth = clusters
    metric = KnnAccuracy(memory, labels, k=1, num_classes=10, cache_dir=str(tmp_path))
    expected = (knn_predict(memory, labels, queries, k=1) == truth).double().mean().item()
    assert metric.compute(predictions=queries, references=truth) == {"knn_accuracy": pytest.approx(expected)}
    with pytest.raises(ValueError, match="among 300"):
        KnnAccuracy(memory, labels, k=999, cache_dir=str(tmp_path)).add_batch(predictions=queries, references=truth)
    with pytest.raises(ValueError, match="Mismatch in the number"):
        KnnAccuracy(memory, labels, cache_dir=str(tmp_path)).compute(predictions=queries, references=truth[:-1])


def test_metric_takes_numbers_of_numpy(clusters):
    memory, labels, queries, truth = clusters
    results = [
        KnnAccuracy(memory, labels, k=k, keep_in_memory=True).compute(predictions=queries, references=truth)
        for k in (5, np.int64(5), [1, 5], np.array([1, 5]))
    ]
    assert results[0] == results[1] and results[2] == results[3]
    assert list(results[1]) == ["knn_accuracy"] and list(results[3]) == ["knn_accuracy_1", "knn_accuracy_5"]


def test_one_search_serves_every_k(clusters):
    memory, labels, queries, truth = clusters
    found = knn_predictions(memory, labels, queries, [20, 1, 300], chunk_size=64)
    assert list(found) == [20, 1, 300]
    for k, classes in found.items():
        assert torch.equal(classes, knn_predict(memory, labels, queries, k))
    with pytest.raises(ValueError, match="k = 301"):
        knn_predictions(memory, labels, queries, [10, 301])
    with pytest.raises(ValueError, match="No number of neighbours votes: give at least one k, from 1 to 300"):
        knn_predictions(memory, labels, queries, [])
    with pytest.raises(ValueError, match=r"temperature \(nan\)"):
        knn_predictions(memory, labels, queries, [1], temperature=float("nan"))
    result = KnnAccuracy(memory, labels, k=[1, 20], keep_in_memory=True).compute(predictions=queries, references=truth)
    expected = {f"knn_accuracy_{k}": (found[k] == truth).double().mean().item() for k in (1, 20)}
    assert result == pytest.approx(expected)
