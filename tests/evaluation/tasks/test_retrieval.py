import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn.functional import normalize

from poa_hf.evaluation.tasks import retrieval
from poa_hf.evaluation.tasks.retrieval import RetrievalMap, retrieval_scores


@pytest.fixture(scope="module")
def images():
    """Memory (200, 6) with labels, queries (60, 6) with labels; half of the memory is there twice."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (160,), generator=generator)
    features = 2 * torch.randn(5, 6, generator=generator)[labels] + 2 * torch.randn(160, 6, generator=generator)
    memory, memory_labels = torch.cat([features[:100], features[:100]]), torch.cat([labels[:100], labels[:100].flip(0)])
    return memory, memory_labels, features[100:], labels[100:]


def expected(memory, memory_labels, queries, labels, ks=(1, 10)) -> np.ndarray:
    similarities = normalize(queries, dim=1) @ normalize(memory, dim=1).T
    rows = []
    for row, label in zip(similarities, labels, strict=True):
        relevant = memory_labels == label
        first = row.argsort(descending=True)
        rows.append([average_precision_score(relevant, row), *(relevant[first[:k]].double().mean() for k in ks)])
    return np.array(rows)


@pytest.mark.parametrize("ranked_at_once", [2**25, 1000, 1])
def test_average_precision_is_scikit_learns(images, monkeypatch, ranked_at_once):
    monkeypatch.setattr(retrieval, "RANKED_AT_ONCE", ranked_at_once)
    memory, memory_labels, queries, labels = images
    average, at_k = retrieval_scores(queries, labels, memory, memory_labels)
    # the doubled images have other labels: they share a rank
    np.testing.assert_allclose(average, expected(memory, memory_labels, queries, labels)[:, 0], atol=1e-6)
    single = memory[:100], memory_labels[:100]
    average, at_k = retrieval_scores(queries, labels, *single)
    reference = expected(*single, queries, labels)
    np.testing.assert_allclose(average, reference[:, 0], atol=1e-6)
    np.testing.assert_allclose(at_k, reference[:, 1:], atol=1e-6)


def test_queries_among_themselves_leave_each_out(images):
    _, _, queries, labels = images
    average, at_k = retrieval_scores(queries, labels)
    for i in range(len(queries)):
        others = torch.arange(len(queries)) != i
        reference = expected(queries[others], labels[others], queries[i : i + 1], labels[i : i + 1])[0]
        np.testing.assert_allclose([average[i], *at_k[i]], reference, atol=1e-6)


def test_queries_without_anything_to_find_are_left_out(images):
    memory, memory_labels, queries, labels = images
    average, at_k = retrieval_scores(queries, labels + 10 * (torch.arange(60) < 20), memory, memory_labels)
    assert average[:20].isnan().all() and at_k[:20].isnan().all() and average[20:].isfinite().all()
    alone, _ = retrieval_scores(queries[:4], torch.tensor([0, 0, 1, 0]), ks=[1])
    assert alone.isnan().tolist() == [False, False, True, False]


def test_the_order_of_the_memory_decides_nothing_for_a_collapsed_model(images):
    _, memory_labels, _, labels = images
    constant = torch.ones(200, 6), torch.ones(60, 6)
    average, _ = retrieval_scores(constant[1], labels, constant[0], memory_labels.sort().values)
    share = memory_labels.bincount().double() / 200
    torch.testing.assert_close(average, share[labels])


def test_metric(images):
    memory, memory_labels, queries, labels = images
    single = memory[:100], memory_labels[:100]
    metric = RetrievalMap(*single, ks=[1, 5], keep_in_memory=True)
    for part in (slice(0, 13), slice(13, 60)):
        metric.add_batch(predictions=queries[part].numpy(), references=labels[part].tolist())
    mean = expected(*single, queries, labels, (1, 5)).mean(axis=0)
    names = ("retrieval_map", "retrieval_precision_1", "retrieval_precision_5")
    result = dict(zip(names, mean.tolist(), strict=True)) | {"queries": 60}
    assert metric.compute() == pytest.approx(result, abs=1e-6)
    lost = torch.where(torch.arange(60) < 30, labels, 99)
    result = metric.compute(predictions=queries, references=lost)
    assert result["queries"] == 30
    assert result["retrieval_map"] == pytest.approx(expected(*single, queries[:30], labels[:30])[:, 0].mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(3, 4)}, "cannot be compared"),
        ({"labels": torch.zeros(2, dtype=torch.int64)}, "as many labels"),
        ({"memory_labels": None}, "as many labels"),
        ({"ks": [1, 201]}, "among 200 images"),
        ({"ks": [0]}, "choose k|give k"),
    ],
)
def test_what_makes_no_sense_is_refused(images, change, message):
    memory, memory_labels, queries, labels = images
    arguments = {"features": queries, "labels": labels, "memory_features": memory, "memory_labels": memory_labels}
    with pytest.raises(ValueError, match=message):
        retrieval_scores(**arguments | change)
