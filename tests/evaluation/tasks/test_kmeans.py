import pytest
import torch
from sklearn import metrics
from sklearn.cluster import KMeans

from poa_hf.evaluation.tasks.kmeans import kmeans


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


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="9 clusters"):
        kmeans(torch.zeros(4, 2), 9)
    with pytest.raises(ValueError, match="cannot be found"):
        kmeans(torch.zeros(4, 2), 2, restarts=0)
