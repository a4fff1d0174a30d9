"""Linear classification of frozen features: by a probe that is chosen fairly, or by the protocol of other authors."""

from __future__ import annotations

import torch

from ..alterations.alteration import AlteredFeatures, ModelInput
from ..alterations.views import TrainingView
from .probe import fit_linear_probe
from .protocols import (
    INPUTS,
    PROTOCOL_STEPS,
    PROTOCOLS,
    LinearOptions,
    Protocol,
    check_linear,
    fit_protocol,
    num_views,
)
from .task import LabelledFeatures, Score, Task


def _run(
    train: LabelledFeatures, test: LabelledFeatures, num_classes: int, options: LinearOptions, device: torch.device
) -> list[Score]:
    if options.protocol is not None:
        return _run_protocol(PROTOCOLS[options.protocol], train, test, num_classes, options, device)
    views = [altered.features for altered in _views(train)]
    probe = fit_linear_probe(train.features, train.labels, num_classes, seed=options.seed, device=device, views=views)
    correct = (probe.classifier.predict(test.features) == test.labels).double()  # (N,)
    details = {"learning_rate": probe.learning_rate, "held_out_accuracy": probe.held_out_accuracy}
    settings = {"seed": options.seed} | ({"augmented_views": len(views)} if views else {})
    return [Score("linear_accuracy", correct.mean().item(), settings, details, correct)]


def _run_protocol(
    protocol: Protocol,
    train: LabelledFeatures,
    test: LabelledFeatures,
    num_classes: int,
    options: LinearOptions,
    device: torch.device,
) -> list[Score]:
    """Train the classifiers of a protocol; the best one on the test images counts, as its authors count."""
    if train.layers is None or test.layers is None:
        raise ValueError("A protocol needs the features of several layers: evaluate a model, not features alone.")
    augmented = [altered.layers for altered in _views(train) if altered.layers is not None]
    steps = options.linear_steps or PROTOCOL_STEPS
    views = augmented or [train.layers]
    trained = fit_protocol(
        views, train.labels, num_classes, protocol.batch_size, steps, seed=options.seed, device=device
    )
    correct = torch.stack([classes == test.labels[:, None].cpu() for classes in trained.predictions(test.layers)])
    accuracies = correct.double().mean(dim=1)  # (inputs, learning rates)
    best = int(accuracies.argmax())  # of equal ones the first
    chosen, rate = divmod(best, len(trained.learning_rates))
    outcomes = correct[chosen, :, rate].double()
    layers, patches = INPUTS[chosen]
    details = {"learning_rate": trained.learning_rates[rate], "layers": layers, "patches": patches}
    settings = {
        "protocol": options.protocol,
        "seed": options.seed,
        "steps": steps,
        "batch_size": protocol.batch_size,
        "augmented_views": len(augmented),
        "chosen_on": "test",
    }
    return [Score("linear_accuracy", outcomes.mean().item(), settings, details, outcomes)]


def _views(train: LabelledFeatures) -> list[AlteredFeatures]:
    views = {view: features for view, features in train.altered.items() if isinstance(view, TrainingView)}
    return [views[view] for view in sorted(views, key=lambda view: view.number)]


def _train_alterations(options: LinearOptions, images: ModelInput) -> list[TrainingView]:
    return [TrainingView(number, *images.sides, options.seed) for number in range(num_views(options))]


LINEAR = Task(
    "linear",
    _run,
    check=lambda options, train_images: check_linear(options),
    train_alterations=_train_alterations,
    layers=lambda options: PROTOCOLS[options.protocol].blocks if options.protocol else None,
)
