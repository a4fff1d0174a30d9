import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from poa_hf.evaluation.tasks.lowshot import fit_logistic_regression
from poa_hf.evaluation.tasks.probe import LinearAccuracy, fit_linear_probe, stratified_sample

Split = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def splits() -> tuple[Split, Split]:
    """Six overlapping classes in 24 channels of very different scales: 1200 train and 600 test images."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 24, generator=generator)
    labels = torch.randint(0, 6, (1800,), generator=generator)
    features = centres[labels] + 1.6 * torch.randn(1800, 24, generator=generator)
    features = features * torch.logspace(-2, 2, 24) + 5
    return (features[:1200], labels[:1200]), (features[1200:], labels[1200:])


def accuracy(classifier, test: Split) -> float:
    return (classifier.predict(test[0]) == test[1]).double().mean().item()


def test_the_probe_does_as_well_as_logistic_regression(splits):
    train, test = splits
    scaler = StandardScaler().fit(train[0].numpy())
    reference = LogisticRegression(max_iter=500).fit(scaler.transform(train[0].numpy()), train[1].numpy())
    expected = reference.score(scaler.transform(test[0].numpy()), test[1].numpy())
    probe = fit_linear_probe(*train)
    assert 0.7 < expected < 0.97  # a task that can be missed both ways
    assert accuracy(probe.classifier, test) == pytest.approx(expected, abs=0.02)
    assert probe.held_out_accuracy == pytest.approx(expected, abs=0.06)


def test_the_probe_depends_on_its_seed_and_data_only(splits):
    train, _ = splits
    options = {"learning_rates": [1e-3, 1e-1], "min_steps": 20, "epochs": 1}
    first = fit_linear_probe(*train, **options)
    torch.rand(3)
    again = fit_linear_probe(*train, **options)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    other = fit_linear_probe(*train, seed=1, **options)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_each_learning_rate_is_trained_as_if_alone(splits):
    train, test = splits
    together = fit_linear_probe(*train, learning_rates=[1e-7, 3e-2], min_steps=50, epochs=1)
    alone = fit_linear_probe(*train, learning_rates=[3e-2], min_steps=50, epochs=1)
    assert together.learning_rate == 3e-2
    torch.testing.assert_close(together.classifier.weight, alone.classifier.weight, rtol=1e-4, atol=1e-6)


def test_one_step_of_sgd_is_that_of_torch(splits):
    (features, labels), _ = splits
    held_out = stratified_sample(labels, 0.1, seed=0, leave_one=True)
    inputs, targets = features[~held_out], labels[~held_out]
    standardised = (inputs - inputs.mean(0)) / inputs.std(0, correction=0)
    layer = torch.nn.Linear(24, 6)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1 * len(inputs) / 256, momentum=0.9)
    for step in range(3):
        optimizer.param_groups[0]["lr"] = 0.1 * len(inputs) / 256 * (1 + np.cos(np.pi * step / 3)) / 2
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(layer(standardised), targets).backward()
        optimizer.step()
    options = {"learning_rates": [0.1], "batch_size": len(inputs), "min_steps": 3, "epochs": 1}
    classifier = fit_linear_probe(features, labels, **options).classifier
    expected = layer(standardised).detach()
    torch.testing.assert_close(inputs @ classifier.weight + classifier.bias, expected, rtol=1e-3, atol=1e-4)


def test_a_rate_that_diverges_is_not_picked_and_constant_channels_do_no_harm(splits):
    (features, labels), test = splits
    constant = torch.cat([features, torch.full((len(features), 1), 1e4)], dim=1)
    probe = fit_linear_probe(constant, labels, learning_rates=[1e-2, 1e38], min_steps=100, epochs=1)
    assert probe.learning_rate == 1e-2 and probe.classifier.weight.isfinite().all()
    with pytest.raises(ValueError, match="diverged with every learning rate"):
        fit_linear_probe(constant, labels, learning_rates=[1e38], min_steps=100, epochs=1)
    assert accuracy(probe.classifier, (torch.nn.functional.pad(test[0], (0, 1), value=1e4), test[1])) > 0.6


def test_stratified_samples():
    labels = torch.tensor([0] * 50 + [1] * 5 + [2])
    chosen = stratified_sample(labels, 0.1, seed=0)
    assert labels[chosen].bincount().tolist() == [5, 1, 1]
    assert labels[stratified_sample(labels, 0.1, seed=0, leave_one=True)].bincount(minlength=3).tolist() == [5, 1, 0]
    assert torch.equal(chosen, stratified_sample(labels, 0.1, seed=0))
    assert not torch.equal(chosen, stratified_sample(labels, 0.1, seed=1))
    assert stratified_sample(labels, 1.0, seed=0).all()


def test_metric_counts_right_classes(splits):
    train, test = splits
    classifier = fit_logistic_regression(*train)
    metric = LinearAccuracy(classifier, keep_in_memory=True)
    for part, labels in zip(test[0].split(250), test[1].split(250), strict=True):
        metric.add_batch(predictions=part, references=labels)
    assert metric.compute() == {"linear_accuracy": pytest.approx(accuracy(classifier, test), abs=1e-12)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "do not match"),
        ({"features": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}, "at least one image"),
        ({"labels": torch.full((4,), -1)}, "drop unlabelled"),
        ({"labels": torch.tensor([0, 1, 2, 3]), "num_classes": 3}, r"not in \[0, 3\)"),
        ({"labels": torch.arange(4)}, "No class has two"),
        ({"learning_rates": []}, "learning_rates"),
        ({"learning_rates": [0.1, -1]}, "must be positive"),
        ({"held_out": 1.0}, "between 0 and 1"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    arguments = {"features": torch.zeros(4, 4), "labels": torch.zeros(4, dtype=torch.int64)} | change
    with pytest.raises(ValueError, match=message):
        fit_linear_probe(**arguments)
