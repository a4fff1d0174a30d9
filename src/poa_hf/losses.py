"""The method's equations, one function each (arXiv 2408.01031; golden values: tests/fixtures/golden).

Logits are the largest tensors of a step by far: what needs those of all prototypes makes them in chunks of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

CHUNK_LOGITS = 2**23  # of one branch at a time: 32 MiB in float32, enough rows to keep matrix products efficient


class SoftAssignments:
    """Balanced soft assignments of N samples to K prototypes, whose rows are made when they are asked for.

    Sinkhorn-Knopp only multiplies rows and columns of exp(logits / temperature) by factors. So what is kept is the
    logits (N, K), in the precision that they have, and the factors; each pass over the rows makes exponentials anew.

    The batch is that of all processes: each passes its own rows, possibly none (SwAV's Sinkhorn-Knopp, arXiv
    2006.09882, as DINOv2 distributes it).
    """

    @torch.no_grad()
    def __init__(self, logits: Tensor, temperature: float, iterations: int = 3):
        self.logits, self.temperature = logits, temperature
        num_samples, num_prototypes = logits.shape
        # A constant shift leaves the result as it is and keeps the exponential finite.
        peak = logits.float().max() if num_samples else logits.new_full((), -torch.inf, dtype=torch.float32)
        self._peak = _all_reduce(peak, dist.ReduceOp.MAX)[None]
        self._prototype_factors = logits.new_ones(num_prototypes, dtype=torch.float32)
        for iteration in range(iterations):
            masses = torch.zeros_like(self._prototype_factors)
            for rows in row_chunks(num_samples, num_prototypes):
                scores = self._scores(rows)
                # the first time, samples count as they are
                masses += self._sample_factors(scores) @ scores if iteration else scores.sum(dim=0)
            masses = _all_reduce(masses)
            # each prototype gets 1/K of the whole mass
            self._prototype_factors = _inverse(masses) * (self._prototype_factors @ masses / num_prototypes)

    def __len__(self) -> int:
        return len(self.logits)

    @torch.no_grad()
    def __getitem__(self, rows: slice) -> Tensor:
        """Rows of the assignments, float32; each sums to 1."""
        scores = self._scores(rows)
        factors = self._sample_factors(scores)
        return scores.mul_(self._prototype_factors).mul_(factors[:, None])

    def _scores(self, rows: slice) -> Tensor:
        return (self.logits[rows] - self._peak).float().div_(self.temperature).exp_()

    def _sample_factors(self, scores: Tensor) -> Tensor:
        return _inverse(scores @ self._prototype_factors)


def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """All rows of `SoftAssignments`: (N, K), float32."""
    with torch.autocast(logits.device.type, enabled=False):
        return SoftAssignments(logits, temperature, iterations)[:]


def cross_entropy(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Cross-entropy (...,) of each row of logits (..., K) against soft targets that broadcast with it.

    Target rows may sum to more than 1 (the targets of several views, added).
    """
    scores = logits.float() / temperature
    return scores.logsumexp(dim=-1) * targets.sum(dim=-1) - (targets * scores).sum(dim=-1)


@torch.no_grad()
def prototype_losses(
    features: Tensor,
    prototypes: Tensor,
    targets: Callable[[slice], Tensor],
    temperature: float,
    weights: Tensor,
    same_view_weights: Tensor | None = None,
    gradients: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Cross-entropies of the students' logits, `features @ prototypes.T`, of which a chunk of rows exists at a time.

    Args:
        features: (S, N, D), of the intact student and, if S is 2, the elastic one; in the precision of the logits.
        prototypes: (K, D), likewise.
        targets: Gives the teacher's targets (n, K), float32, of a slice of n rows. They may sum to more than 1.
        weights: (S, N), what each row counts in the total.
        same_view_weights: (N,), what the elastic student's cross-entropy against the intact one's softmax counts.
        gradients: Of features and of prototypes, float32; the total's gradient is added to them.

    Returns:
        The cross-entropies (S, N) against the targets, and those (N,) of the elastic student against the intact one, or
        None; unweighted.
    """
    num_rows = features.shape[1]
    losses = weights.new_zeros(len(features), num_rows)
    same_view = None if same_view_weights is None else weights.new_zeros(num_rows)
    for rows in row_chunks(num_rows, len(prototypes)):
        chunk = features[:, rows].flatten(0, 1)
        scores = torch.addmm(chunk.new_zeros(1), chunk, prototypes.T, beta=0, alpha=1 / temperature)
        log_probabilities = scores.log_softmax(-1, dtype=torch.float32).unflatten(0, (len(features), -1))
        intact, elastic = log_probabilities[0], log_probabilities[-1]
        del scores
        target = targets(rows)
        losses[:, rows] = -torch.einsum("nk,bnk->bn", target, log_probabilities)
        # in place from here on: log-probabilities become probabilities, and these the gradient of the scores
        if same_view is not None:
            intact.exp_()
            same_view[rows] = -torch.einsum("nk,nk->n", intact, elastic)
        if gradients is None:
            continue
        masses = target.sum(dim=-1)
        weight = weights[:, rows, None]
        if same_view is None:
            log_probabilities.exp_().mul_(weight * masses[:, None])
        else:
            same_weight = same_view_weights[rows, None]
            elastic.exp_().mul_(weight[1] * masses[:, None] + same_weight).addcmul_(intact, same_weight, value=-1)
            intact.mul_(weight[0] * masses[:, None])
        log_probabilities.addcmul_(target, weight, value=-1)
        slopes = log_probabilities.flatten(0, 1).to(chunk.dtype)
        del intact, elastic, log_probabilities, target
        gradients[0][:, rows] += (slopes @ prototypes).unflatten(0, (len(features), -1)) / temperature
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
