import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn import metrics

from poa_hf.evaluation.tasks import LabelledFeatures, TaskOptions, run_task
from poa_hf.evaluation.tasks.clustering import (
    ClusteringScores,
    clustering_replicates,
    clustering_scores,
    matched_images,
)


@pytest.mark.parametrize("clusters", [1, 3, 7, 12])
def test_scores_equal_scikit_learn(clusters):
    generator = torch.Generator().manual_seed(clusters)
    labels = torch.randint(0, 7, (300,), generator=generator)
    noise = torch.randint(0, clusters, (300,), generator=generator)
    assignments = torch.where(torch.rand(300, generator=generator) < 0.4, labels % clusters, noise)
    table = metrics.cluster.contingency_matrix(labels, assignments)
    expected = {
        "clustering_accuracy": table[linear_sum_assignment(-table)].sum() / 300,
        "clustering_nmi": metrics.normalized_mutual_info_score(labels, assignments),
        "clustering_ari": metrics.adjusted_rand_score(labels, assignments),
    }
    assert clustering_scores(assignments, labels) == pytest.approx(expected, abs=1e-6)
    metric = ClusteringScores(keep_in_memory=True)
    for part in (slice(0, 100), slice(100, 300)):
        metric.add_batch(predictions=assignments[part], references=labels[part])
    assert metric.compute() == pytest.approx(expected, abs=1e-6)


def test_scores_at_the_ends():
    labels = torch.tensor([0, 0, 1, 1, 2])
    swapped = torch.tensor([2, 2, 0, 0, 1])
    assert clustering_scores(swapped, labels) == pytest.approx(dict.fromkeys(NAMES, 1.0))
    same = torch.zeros(5, dtype=torch.int64)
    assert clustering_scores(same, same) == dict.fromkeys(NAMES, 1.0)
    assert clustering_scores(same, labels) == pytest.approx(dict(zip(NAMES, (0.4, 0, 0), strict=True)))
    assert np.allclose(list(clustering_scores(same[:1], same[:1]).values()), 1)


NAMES = ("clustering_accuracy", "clustering_nmi", "clustering_ari")


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="do not match"):
        clustering_scores(torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="drop unlabelled"):
        clustering_scores(torch.zeros(3, dtype=torch.int64), torch.full((3,), -1))


def test_replicates_are_those_of_a_bootstrap_by_scikit_learn():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 150)
    assignments = np.where(generator.random(150) < 0.5, labels, generator.integers(0, 5, 150))
    found = clustering_replicates(torch.from_numpy(assignments), torch.from_numpy(labels))
    for name, reference in (
        ("clustering_nmi", metrics.normalized_mutual_info_score), ("clustering_ari", metrics.adjusted_rand_score),
    ):  # fmt: skip
        drawn = generator.integers(150, size=(600, 150))
        values = np.array([reference(labels[rows], assignments[rows]) for rows in drawn])
        low, high = np.quantile(values, [0.025, 0.975])
        assert np.quantile(found[name], [0.025, 0.975]) == pytest.approx((low, high), abs=0.12 * (high - low))
        assert found[name].mean().item() == pytest.approx(values.mean(), abs=0.1 * (high - low))
    score, _, rand = run_task("clustering", None, LabelledFeatures(torch.eye(4), torch.arange(4)), 4, TaskOptions(),
                              torch.device("cpu"))  # fmt: skip
    assert score.value == rand.value == 1 and rand.interval is None  # replicates of no fault do not differ


@pytest.mark.parametrize("sizes", [[4, 8, 5], [3, 2, 2, 2, 7], [100, 37, 61]])
def test_no_number_and_no_interval_leaves_its_range(sizes):
    """Perfect clusters, in whatever order they are numbered, and clusters that have nothing to do with the classes."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(sizes), generator=generator) for _ in range(4)]
    noise = torch.randn(len(labels), 2, generator=generator)
    for features in (*(torch.eye(len(sizes))[order][labels] for order in orders), noise):
        scores = run_task("clustering", None, LabelledFeatures(features, labels), 9, TaskOptions(), torch.device("cpu"))
        for score, lowest in zip(scores, (0, 0, -0.5), strict=True):
            assert lowest <= score.value <= 1
            assert score.interval is None or lowest <= score.interval[0] <= score.interval[1] <= 1
        if features is not noise:
            assert [score.value for score in scores] == pytest.approx([1, 1, 1], abs=1e-12)
            assert scores[1].interval is None and scores[2].interval is None


def test_matched_images_are_those_that_the_accuracy_counts():
    generator = torch.Generator().manual_seed(3)
    labels, assignments = (torch.randint(0, count, (200,), generator=generator) for count in (5, 8))
    matched = matched_images(assignments, labels)
    assert matched.double().mean().item() == clustering_scores(assignments, labels)["clustering_accuracy"]
    of_pairs = {(a, b) for a, b, m in zip(assignments.tolist(), labels.tolist(), matched.tolist(), strict=True) if m}
    assert len(of_pairs) == len({a for a, _ in of_pairs}) == len({b for _, b in of_pairs}) == 5
