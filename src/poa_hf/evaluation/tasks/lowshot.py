"""Low-shot classification: how far a small share of the labels goes on frozen features.

With so few labels none can be spared to choose a learning rate, and the optimum of a regularised problem is found
exactly in no time. Hence logistic regression, scikit-learn's objective with its default strength (C = 1), by L-BFGS.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .probe import LinearClassifier, check_labelled, standardisation, stratified_sample

MAX_ITERATIONS = 300


def fit_logistic_regression(
    features: Tensor,
    labels: Tensor,
    num_classes: int | None = None,
    regularisation: float = 1.0,
    chunk_size: int = 16384,
    device: torch.device | str | None = None,
) -> LinearClassifier:
    """The minimum of `sum of cross-entropies + regularisation / 2 * squared norm of the weights` (not the bias).

    Features are taken as they are; `regularisation` is scikit-learn's 1 / C. Started at 0, so nothing is random.

    Raises:
        ValueError: for shapes that don't fit, or labels that are not in [0, num_classes).
    """
    num_classes = check_labelled(features, labels, num_classes)
    device = torch.device(device or features.device)
    features, labels = features.to(device).float(), labels.to(device)
    weight = torch.zeros(features.shape[1], num_classes, device=device, requires_grad=True)
    bias = torch.zeros(num_classes, device=device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        # divided by the number of images, which moves no minimum and keeps float32 sums near 1
        loss = regularisation / 2 * weight.square().sum() / len(features)
        loss.backward()
        for inputs, targets in zip(features.split(chunk_size), labels.split(chunk_size), strict=True):
            part = cross_entropy(inputs @ weight + bias, targets, reduction="sum") / len(features)
            part.backward()
            loss = loss + part.detach()
        return loss.detach()

    with torch.enable_grad():
        optimizer.step(objective)
    return LinearClassifier(weight.detach(), bias.detach())


def low_shot_accuracies(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    share: float,
    draws: int = 3,
    num_classes: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> tuple[list[float], int]:
    """Test accuracy with a `share` of the training labels, once per draw of it, and how many labels that are.

    Each draw takes the same share of every class, at least one image of each. Features (N, D) are standardised over all
    training images, which needs no labels.

    Raises:
        ValueError: for a share outside ]0, 1], shapes that don't fit, or labels out of range.
    """
    if not 0 < share <= 1 or draws < 1:
        raise ValueError(
            f"A share of {share} of the labels in {draws} draws makes no sense: give more than 0 and at most 1, in at "
            "least one draw."
        )
    num_classes = check_labelled(train_features, train_labels, num_classes)
    mean, deviation = standardisation(train_features)
    accuracies = []
    for draw in range(draws):
        chosen = stratified_sample(train_labels, share, seed * 1_000_003 + draw)
        inputs = (train_features[chosen].float() - mean) / deviation
        classifier = fit_logistic_regression(inputs, train_labels[chosen], num_classes, device=device)
        weight = classifier.weight / deviation.to(classifier.weight.device)[:, None]
        unscaled = LinearClassifier(weight, classifier.bias - mean.to(weight.device) @ weight)
        accuracies.append((unscaled.predict(features) == labels).double().mean().item())
    return accuracies, int(chosen.sum())
