import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from poa_hf.evaluation.tasks.lowshot import fit_logistic_regression, low_shot_accuracies
from poa_hf.evaluation.tasks.probe import fit_linear_probe

Split = tuple[torch.Tensor, torch.Tensor]


def accuracy(classifier, test: Split) -> float:
    return (classifier.predict(test[0]) == test[1]).double().mean().item()


@pytest.fixture(scope="module")
def splits() -> tuple[Split, Split]:
    """Six overlapping classes in 24 channels of very different scales: 1200 train and 600 test images."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 24, generator=generator)
    labels = torch.randint(0, 6, (1800,), generator=generator)
    features = centres[labels] + 1.6 * torch.randn(1800, 24, generator=generator)
    features = features * torch.logspace(-2, 2, 24) + 5
    return (features[:1200], labels[:1200]), (features[1200:], labels[1200:])


def test_logistic_regression_is_scikit_learns(splits):
    (features, labels), test = splits
    features = torch.from_numpy(StandardScaler().fit_transform(features[:300].numpy()))
    for strength in (1.0, 100.0):
        reference = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=5000).fit(features.numpy(), labels[:300])
        ours = fit_logistic_regression(features, labels[:300], regularisation=strength, chunk_size=128)
        np.testing.assert_allclose(ours.weight.T, reference.coef_, atol=2e-3)
        bias = ours.bias - ours.bias.mean()  # a constant in all of them changes nothing
        np.testing.assert_allclose(bias, reference.intercept_ - reference.intercept_.mean(), atol=2e-3)
        assert (ours.predict(features).numpy() == reference.predict(features.numpy())).all()


def test_low_shot_takes_its_share_of_every_class(splits):
    train, test = splits
    few, labels = low_shot_accuracies(*train, *test, share=0.01)
    many, more_labels = low_shot_accuracies(*train, *test, share=0.2)
    assert len(few) == len(many) == 3 and len(set(few)) > 1
    assert labels == pytest.approx(12, abs=3) and more_labels == pytest.approx(240, abs=3)
    assert max(few) < min(many)
    everything, count = low_shot_accuracies(*train, *test, share=1.0, draws=1)
    assert count == 1200 and everything[0] == pytest.approx(
        accuracy(fit_linear_probe(*train).classifier, test), abs=0.02
    )


def test_a_share_that_makes_no_sense_is_refused(splits):
    train, test = splits
    for share, draws in ((0, 3), (1.5, 3), (0.1, 0)):
        with pytest.raises(ValueError, match="is not possible"):
            low_shot_accuracies(*train, *test, share, draws)
