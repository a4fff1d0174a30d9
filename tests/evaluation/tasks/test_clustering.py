import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn import metrics
from sklearn.cluster import KMeans

from poa_hf.evaluation.tasks import LabelledFeatures, TaskOptions, run_task
from poa_hf.evaluation.tasks.clustering import (
    ClusteringScores,
    clustering_replicates,
    clustering_scores,
    kmeans,
    matched_images,
)


@pytest.fixture(scope="module")
def blobs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 7, (600,), generator=generator)
    return 2 * torch.randn(7, 8, generator=generator)[labels] + torch.randn(600, 8, generator=generator), labels


def test_kmeans_is_as_good_as_scikit_learns(blobs):
    features, _ = blobs
    ours = kmeans(features, 7, chunk_size=100)
    reference = KMeans(7, n_init=5, random_state=0).fit(features.numpy())
    assert ours.inertia == pytest.approx(reference.inertia_, rel=1e-3)
    assert metrics.adjusted_rand_score(reference.labels_, ours.assignments) > 0.99
    distances = torch.cdist(features, ours.centres)
    assert torch.equal(distances.argmin(dim=1), ours.assignments)
    assert distances.amin(dim=1).square().sum().item() == pytest.approx(ours.inertia, rel=1e-4)


def test_kmeans_depends_on_its_seed_only(blobs):
    features, _ = blobs
    runs = [kmeans(features, 20, restarts=1, max_iterations=2, seed=seed) for seed in (0, 0, 1)]
    torch.testing.assert_close(runs[0].centres, runs[1].centres, rtol=0, atol=0)
    assert runs[0].inertia != runs[2].inertia
    best = kmeans(features, 20, restarts=3)
    assert best.inertia <= min(kmeans(features, 20, restarts=1, seed=seed).inertia for seed in range(3)) + 1e-6


def test_no_cluster_stays_empty():
    features = torch.cat([torch.zeros(30, 2), torch.tensor([[9.0, 9.0], [9.0, -9.0]])])
    found = kmeans(features, 3, restarts=1)
    assert found.assignments.bincount().sort().values.tolist() == [1, 1, 30] and found.inertia == 0
    assert kmeans(torch.ones(5, 3), 2).inertia == 0  # all alike, as of a collapsed model


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
    with pytest.raises(ValueError, match="9 clusters"):
        kmeans(torch.zeros(4, 2), 9)
    with pytest.raises(ValueError, match="cannot be found"):
        kmeans(torch.zeros(4, 2), 2, restarts=0)
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


def test_matched_images_are_those_that_the_accuracy_counts():
    generator = torch.Generator().manual_seed(3)
    labels, assignments = (torch.randint(0, count, (200,), generator=generator) for count in (5, 8))
    matched = matched_images(assignments, labels)
    assert matched.double().mean().item() == clustering_scores(assignments, labels)["clustering_accuracy"]
    of_pairs = {(a, b) for a, b, m in zip(assignments.tolist(), labels.tolist(), matched.tolist(), strict=True) if m}
    assert len(of_pairs) == len({a for a, _ in of_pairs}) == len({b for _, b in of_pairs}) == 5
