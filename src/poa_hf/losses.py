"""The method's equations, one function each (arXiv 2408.01031; golden values: tests/fixtures/golden)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Balanced soft assignments (N, K) of N samples to K prototypes, in float32; each row sums to 1.

    The batch is that of all processes: each passes its own rows (possibly none) and gets them back (SwAV's
    Sinkhorn-Knopp, arXiv 2006.09882, as DINOv2 distributes it).
    """
    scores = logits.float() / temperature
    # A constant shift leaves the result as it is and keeps the exponential finite.
    peak = scores.max() if scores.numel() else scores.new_tensor(-torch.inf)
    assignments = (scores - _all_reduce(peak, dist.ReduceOp.MAX)).exp_()
    num_prototypes = logits.shape[1]
    num_samples = _all_reduce(assignments.new_tensor(float(logits.shape[0])))
    assignments /= _all_reduce(assignments.sum())
    tiny = torch.finfo(torch.float32).tiny  # a prototype or sample whose scores underflowed keeps zeros, not NaNs
    for _ in range(iterations):
        assignments /= (_all_reduce(assignments.sum(dim=0)) * num_prototypes).clamp_(min=tiny)
        assignments /= (assignments.sum(dim=1, keepdim=True) * num_samples).clamp_(min=tiny)
    return assignments.mul_(num_samples)


def cross_entropy(targets: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Cross-entropy (...,) of each row of logits (..., K) against soft targets that broadcast with it.

    Target rows may sum to more than 1 (the targets of several views, added).
    """
    scores = logits.float() / temperature
    return scores.logsumexp(dim=-1) * targets.sum(dim=-1) - (targets * scores).sum(dim=-1)


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


def _all_reduce(tensor: Tensor, op=dist.ReduceOp.SUM) -> Tensor:
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor, op=op)
    return tensor
