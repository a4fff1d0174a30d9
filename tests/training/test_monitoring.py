import pytest
import torch

from poa_hf.training.monitoring import collapse_warning, feature_statistics


def test_spread_and_rank_of_known_features():
    uniform = feature_statistics(torch.randn(4000, 16))
    assert uniform["feature_spread"] == pytest.approx(1, abs=0.01)
    assert uniform["effective_rank"] == pytest.approx(16, abs=0.1)
    line = torch.randn(50, 1) * torch.ones(1, 16) * 0.1 + torch.arange(16.0)
    assert feature_statistics(line)["effective_rank"] < 2
    same = feature_statistics(torch.ones(50, 16) + 1e-6 * torch.randn(50, 16))
    assert same["feature_spread"] < 0.001


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        ({"feature_spread": 0.01, "effective_rank": 9.0}, "every image almost the same feature"),
        ({"feature_spread": 0.5, "effective_rank": 1.2}, "almost one direction"),
        ({"feature_spread": 0.5, "effective_rank": 9.0, "teacher_entropy_1": 0.9999}, "teacher_entropy_1 above"),
    ],
)
def test_collapse_is_said_in_words(statistics, words):
    assert words in collapse_warning(statistics)


def test_health_is_silent():
    healthy = {"feature_spread": 0.5, "effective_rank": 9.0, "teacher_entropy_0": 0.9}
    assert collapse_warning(healthy) is None
