"""What the losses compute of a chunk of rows of logits, as functions whose arithmetic a compiler can fuse.

Each takes the tensors that have one entry for each row as a tuple, so that it can be compiled for any number of rows,
followed by what all rows share. None of them changes its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# Tensors with as many entries along their first axis; None in place of one that is not needed.
Rows = tuple[Tensor | None, ...]


def masses(rows: tuple[Tensor], peak: Tensor, prototype_factors: Tensor | None, temperature: Tensor) -> Tensor:
    """Return the mass that samples give to each prototype in an iteration of Sinkhorn-Knopp (K,).

    Args:
        rows: The logits of n samples (n, K).
        peak: The largest logit of all samples (1,), float32.
        prototype_factors: The prototypes' factors so far (K,); None in the first iteration, in which samples are not
            yet normalised.
        temperature: Softmax temperature, a scalar.
    """
    scores = _scores(rows[0], peak, temperature)
    if prototype_factors is None:
        return scores.sum(dim=0)
    return _sample_factors(scores, prototype_factors) @ scores


def balanced(rows: tuple[Tensor, Tensor]) -> Tensor:
    """Return the factors of K prototypes after an iteration of Sinkhorn-Knopp (K,): each gets 1/K of the total mass.

    Args:
        rows: The factors that each prototype had before (K,), and the mass that all samples gave to it (K,).
    """
    factors, mass = rows
    return _inverse(mass) * (_row_products(factors, mass) / len(mass))


def assignments(rows: tuple[Tensor], peak: Tensor, prototype_factors: Tensor, temperature: Tensor) -> Tensor:
    """Return the assignments of samples to prototypes (n, K), float32; each row sums to 1.

    Args:
        rows: The logits of n samples (n, K).
        peak: The largest logit of all samples (1,), float32.
        prototype_factors: The prototypes' factors (K,).
        temperature: Softmax temperature, a scalar.
    """
    scores = _scores(rows[0], peak, temperature)
    factors = _sample_factors(scores, prototype_factors)
    return scores.mul_(prototype_factors).mul_(factors[:, None])


def cross_entropies(
    rows: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    prototypes: Tensor,
    temperature: float,
    with_slopes: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the cross-entropies of a student's logits, and their gradient.

    Args:
        rows: The student's features (n, bottleneck), the teacher's targets (n, K), the weights of the cross-entropies
            against them (n,), and, for the same-view loss, the other student's features (n, bottleneck) and the weights
            of the cross-entropies against its softmax (n,).
        prototypes: (K, bottleneck), in the precision of the features.
        temperature: Softmax temperature of the students.
        with_slopes: Whether the gradient is wanted.

    Returns:
        The cross-entropies against the teacher's targets (n,); those against the other student (n,) or None; the
        gradient of the weighted total by the logits over the temperature (n, K), in the precision of the features, or
        None.
    """
    features, target, weight, same_features, same_weight = rows
    log_probabilities = scaled_product(features, prototypes.T, temperature).log_softmax(-1, dtype=torch.float32)
    losses = _row_products(target, log_probabilities).neg_()
    weight = weight[:, None]
    totals = weight * target.sum(dim=-1, keepdim=True)
    same_losses = None
    if same_features is not None and same_weight is not None:
        same_target = scaled_product(same_features, prototypes.T, temperature).softmax(-1, dtype=torch.float32)
        same_losses = _row_products(same_target, log_probabilities).neg_()
        same_weight = same_weight[:, None]
        totals = totals + same_weight
    if not with_slopes:
        return losses, same_losses, None
    # in place: log-probabilities become probabilities, and these the gradient of the scores
    slopes = log_probabilities.exp_().mul_(totals).addcmul_(target, weight, value=-1)
    if same_weight is not None:
        slopes.addcmul_(same_target, same_weight, value=-1)
    return losses, same_losses, slopes.to(features.dtype)


class RowFunctions(NamedTuple):
    """The functions of this module, as they are or compiled."""

    masses: Callable[..., Tensor] = masses
    balanced: Callable[..., Tensor] = balanced
    assignments: Callable[..., Tensor] = assignments
    cross_entropies: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]] = cross_entropies


PLAIN = RowFunctions()


def scaled_product(rows: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """Return rows @ columns / temperature, as one kernel, whose addend is not read."""
    return torch.addmm(rows.new_empty(1), rows, columns, beta=0, alpha=1 / temperature)


def _scores(logits: Tensor, peak: Tensor, temperature: Tensor) -> Tensor:
    return (logits - peak).float().div_(temperature).exp_()


def _sample_factors(scores: Tensor, prototype_factors: Tensor) -> Tensor:
    return _inverse(scores @ prototype_factors)


def _inverse(sums: Tensor) -> Tensor:
    # a prototype or sample whose scores underflowed keeps zeros, not NaNs
    return sums.clamp(min=torch.finfo(torch.float32).tiny).reciprocal_()


def _row_products(first: Tensor, second: Tensor) -> Tensor:
    """Return the dot products of two tensors' rows, without a tensor of all products."""
    if torch.compiler.is_compiling():
        return (first * second).sum(dim=-1)  # fused, where the product below would be a kernel by itself
    return torch.einsum("...k,...k->...", first, second)
