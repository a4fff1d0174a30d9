"""The method's equations, one function each (arXiv 2408.01031; golden values: tests/fixtures/golden).

Logits are the largest tensors of a step by far: what needs those of all prototypes makes them in chunks of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

# Gives the targets (n, K), float32, of a slice of n rows.
RowTargets = Callable[[slice], Tensor]
CHUNK_LOGITS = 2**23  # of one branch at a time: 32 MiB in float32, enough rows to keep matrix products efficient


class SinkhornKnopp:
    """Balanced soft assignments of samples to K prototypes.

    The algorithm only multiplies rows and columns of exp(logits / temperature) by factors. So once the prototypes'
    factors are found, from the logits (N, K) of all samples, the assignments of any of these are made from their logits
    alone, whenever they are needed.

    The batch is that of all processes: each passes its own rows, possibly none (SwAV's Sinkhorn-Knopp, arXiv
    2006.09882, as DINOv2 distributes it).
    """

    @torch.no_grad()
    def __init__(self, logits: Tensor, temperature: float, iterations: int = 3):
        self.temperature = temperature
        num_samples, num_prototypes = logits.shape
        # A constant shift leaves the result as it is and keeps the exponential finite.
        peak = logits.float().max() if num_samples else logits.new_full((), -torch.inf, dtype=torch.float32)
        self._peak = _all_reduce(peak, dist.ReduceOp.MAX)[None]
        self._prototype_factors = logits.new_ones(num_prototypes, dtype=torch.float32)
        for iteration in range(iterations):
            masses = torch.zeros_like(self._prototype_factors)
            for rows in row_chunks(num_samples, num_prototypes):
                scores = self._scores(logits[rows])
                # the first time, samples count as they are
                masses += self._sample_factors(scores) @ scores if iteration else scores.sum(dim=0)
            masses = _all_reduce(masses)
            # each prototype gets 1/K of the whole mass
            self._prototype_factors = _inverse(masses) * (self._prototype_factors @ masses / num_prototypes)

    @torch.no_grad()
    def __call__(self, logits: Tensor) -> Tensor:
        """The assignments (n, K) of n of the samples, float32, from their logits; each row sums to 1."""
        scores = self._scores(logits)
        factors = self._sample_factors(scores)
        return scores.mul_(self._prototype_factors).mul_(factors[:, None])

    def _scores(self, logits: Tensor) -> Tensor:
        return (logits - self._peak).float().div_(self.temperature).exp_()

    def _sample_factors(self, scores: Tensor) -> Tensor:
        return _inverse(scores @ self._prototype_factors)


@torch.no_grad()
def prototype_losses(
    features: Tensor,
    prototypes: Tensor,
    targets: RowTargets,
    temperature: float,
    weights: Tensor,
    intact: tuple[Tensor, Tensor] | None = None,
    gradients: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Cross-entropies of a student's logits, `features @ prototypes.T`, of which a chunk of rows exists at a time.

    Args:
        features: (N, D), in the precision of the logits.
        prototypes: (K, D), likewise.
        targets: Gives the teacher's targets (n, K), float32, of a slice of n rows. They may sum to more than 1.
        weights: (N,), what each row counts in the total.
        intact: For same-view losses, the intact student's features (N, D), and what each row's cross-entropy against
            its softmax counts (N,).
        gradients: Of features and of prototypes, float32; the total's gradient is added to them.

    Returns:
        The cross-entropies (N,) against the targets, and those against the intact student, or None; unweighted.
    """

    def scores(features: Tensor) -> Tensor:
        return torch.addmm(features.new_zeros(1), features, prototypes.T, beta=0, alpha=1 / temperature)

    losses = weights.new_zeros(len(features))
    same_view = None if intact is None else weights.new_zeros(len(features))
    for rows in row_chunks(len(features), len(prototypes)):
        chunk = features[rows]
        log_probabilities = scores(chunk).log_softmax(-1, dtype=torch.float32)
        target = targets(rows)
        losses[rows] = -torch.einsum("nk,nk->n", target, log_probabilities)
        weight = weights[rows, None]
        masses = weight * target.sum(dim=-1, keepdim=True)
        if intact is not None:
            same_target, same_weight = scores(intact[0][rows]).softmax(-1, dtype=torch.float32), intact[1][rows, None]
            same_view[rows] = -torch.einsum("nk,nk->n", same_target, log_probabilities)
            masses = masses + same_weight
        if gradients is None:
            continue
        # in place: log-probabilities become probabilities, and these the gradient of the scores
        slopes = log_probabilities.exp_().mul_(masses).addcmul_(target, weight, value=-1)
        if intact is not None:
            slopes.addcmul_(same_target, same_weight, value=-1)
            del same_target
        del target, log_probabilities
        slopes = slopes.to(chunk.dtype)
        gradients[0][rows] += slopes @ prototypes / temperature
        if slopes.dtype == gradients[1].dtype:
            gradients[1].addmm_(slopes.T, chunk, alpha=1 / temperature)
        else:
            gradients[1].add_(slopes.T @ chunk, alpha=1 / temperature)
    return losses, same_view


def koleo(features: Tensor) -> Tensor:
    """Kozachenko-Leonenko regulariser of features (N, D): minus the mean log distance to the nearest neighbour on the
    sphere (arXiv 1806.03198, as in DINOv2). Float32; 0 for fewer than 2 rows."""
    if features.shape[0] < 2:
        return features.float().sum() * 0
    with torch.autocast(features.device.type, enabled=False):
        features = F.normalize(features.float(), dim=-1, eps=1e-8)
        with torch.no_grad():
            similarity = features @ features.T
            neighbours = similarity.fill_diagonal_(-1).argmax(dim=1)
        distances = F.pairwise_distance(features, features[neighbours], p=2, eps=1e-8)
        return -(distances + 1e-8).log().mean()


def row_chunks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Slices that cover the rows, as many at a time as `CHUNK_LOGITS` allows."""
    size = max(1, CHUNK_LOGITS // num_columns)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def _inverse(sums: Tensor) -> Tensor:
    # a prototype or sample whose scores underflowed keeps zeros, not NaNs
    return sums.clamp(min=torch.finfo(torch.float32).tiny).reciprocal_()


def _all_reduce(tensor: Tensor, op=dist.ReduceOp.SUM) -> Tensor:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor, op=op)
    return tensor
