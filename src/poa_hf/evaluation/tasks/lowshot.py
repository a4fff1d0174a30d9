"""Low-shot classification: how accurate frozen features are with a small share of the labels.

With so few labels, none can be spared to choose a learning rate, and a regularised problem is solved exactly in no
time. Hence logistic regression by L-BFGS, with scikit-learn's objective and its default strength (C = 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...ranges import COUNT, Range, check_number
from ..finite import check_finite
from .probe import LinearClassifier, check_labelled, standardisation, stratified_sample
from .task import LabelledFeatures, Options, Score, Task, check_numbers

MAX_ITERATIONS = 300
LABEL_SHARE = Range(0, 1, above=True)


@dataclass(frozen=True)
class LowShotOptions(Options):
    """The options of low-shot classification.

    Args:
        label_shares: Shares of the train labels, each of which gives a score.
        label_draws: How often each share is drawn; the score is the mean.
    """

    label_shares: tuple[float, ...] = (0.01, 0.1)
    label_draws: int = 3


def _run(
    train: LabelledFeatures, test: LabelledFeatures, num_classes: int, options: LowShotOptions, device: torch.device
) -> list[Score]:
    scores = []
    for share in dict.fromkeys(options.label_shares):
        correct, labels = low_shot_outcomes(
            train.features,
            train.labels,
            test.features,
            test.labels,
            share,
            options.label_draws,
            num_classes,
            options.seed,
            device,
        )
        settings = {"label_share": share, "draws": options.label_draws, "seed": options.seed}
        accuracies = correct.mean(dim=0).tolist()
        mean = sum(accuracies) / len(accuracies)
        details = {"labels": labels, "accuracies": accuracies}
        scores.append(Score("lowshot_accuracy", mean, settings, details, correct))
    return scores


def _check(options: LowShotOptions, train_images: int | None) -> None:
    check_numbers("label_shares", options.label_shares, LABEL_SHARE)
    check_number("label_draws", options.label_draws, COUNT)


LOW_SHOT = Task("lowshot", _run, check=_check)


def fit_logistic_regression(
    features: Tensor,
    labels: Tensor,
    num_classes: int | None = None,
    regularisation: float = 1.0,
    chunk_size: int = 16384,
    device: torch.device | str | None = None,
) -> LinearClassifier:
    """Minimise the sum of cross-entropies + regularisation / 2 * the squared norm of the weights (not the bias).

    Features are not standardised here. The weights start at 0, so nothing is random.

    Args:
        features: (N, D).
        labels: (N,) integers in [0, num_classes).
        num_classes: The largest label + 1 by default.
        regularisation: What scikit-learn calls 1 / C.
        chunk_size: The number of images whose logits are computed at a time.
        device: Where the classifier is fitted, by default where the features are.

    Raises:
        ValueError: For shapes that do not match, labels that are not in [0, num_classes), or features that are not
            finite.
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
        # divided by the number of images, which does not move the minimum and keeps float32 sums near 1
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
    """Return the test accuracy of classifiers that learn from a share of the train labels.

    See `low_shot_outcomes` for how they learn.

    Args:
        train_features: (M, D).
        train_labels: (M,) integers in [0, num_classes).
        features: (N, D), of the test split.
        labels: (N,).
        share: The share of the labels, above 0 and at most 1.
        draws: How often the share is drawn.
        num_classes: The largest train label + 1 by default.
        device: Where the classifiers are fitted, by default where the features are.

    Returns:
        The accuracy of each draw, and the number of labels that each learns from.

    Raises:
        ValueError: For a share or a number of draws out of range, shapes that do not match, labels out of range, or
            features that are not finite.
    """
    correct, count = low_shot_outcomes(
        train_features, train_labels, features, labels, share, draws, num_classes, seed, device
    )
    return correct.mean(dim=0).tolist(), count


def low_shot_outcomes(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    share: float,
    draws: int = 3,
    num_classes: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> tuple[Tensor, int]:
    """Return which test images are classified rightly by classifiers that learn from a share of the train labels.

    Every draw takes the same share of each class, at least one image of each. Features are standardised over all train
    images, which needs no labels. The arguments are those of `low_shot_accuracies`.

    Returns:
        1 where the classifier of a draw is right and 0 where not, (N, draws), and the number of labels that each
        learns from.

    Raises:
        ValueError: For a share or a number of draws out of range, shapes that do not match, labels out of range, or
            features that are not finite.
    """
    if not 0 < share <= 1 or draws < 1:
        raise ValueError(
            f"A share of {share} of the labels in {draws} draws is not possible: give a share above 0 and at most 1, "
            "and at least one draw."
        )
    num_classes = check_labelled(train_features, train_labels, num_classes)
    check_finite(features)
    mean, deviation = standardisation(train_features)
    correct = []
    for draw in range(draws):
        chosen = stratified_sample(train_labels, share, seed * 1_000_003 + draw)
        inputs = (train_features[chosen].float() - mean) / deviation
        classifier = fit_logistic_regression(inputs, train_labels[chosen], num_classes, device=device)
        # the standardisation becomes part of the classifier
        weight = classifier.weight / deviation.to(classifier.weight.device)[:, None]  # (D, classes)
        unscaled = LinearClassifier(weight, classifier.bias - mean.to(weight.device) @ weight)
        correct.append((unscaled.predict(features) == labels).double())
    return torch.stack(correct, dim=1), int(chosen.sum())
