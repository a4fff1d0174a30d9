"""The method's equations, one function each (arXiv 2408.01031; golden values: tests/fixtures/golden).

Logits are by far the largest tensors of a step, so they are computed in chunks of rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from .row_functions import PLAIN, RowFunctions, scaled_product

# Returns the targets (n, K), float32, of a slice of n rows.
RowTargets = Callable[[slice], Tensor]
# Logits of one branch that exist at a time: 32 MiB in float32, enough rows to keep matrix products efficient. On GPUs
# four times as many: a ViT-L step of 50 images then launches half as many kernels for its losses, for 0.2 GB of memory.
CHUNK_LOGITS = 2**23
CHUNK_LOGITS_ON_GPU = 2**25


class SinkhornKnopp:
    """Balanced soft assignments of samples to K prototypes (SwAV, arXiv 2006.09882, as distributed by DINOv2).

    The algorithm only multiplies rows and columns of exp(logits / temperature) by factors. The prototypes' factors are
    computed from all samples when an object is made; called with the logits of any of these samples, it returns their
    assignments.

    The batch is that of all processes: each passes its own rows, possibly none.

    Args:
        logits: Logits of all samples of this process (N, K).
        temperature: Softmax temperature.
        iterations: How often columns and rows are normalised.
        functions: What is computed of chunks of rows, compiled or not.
    """

    @torch.no_grad()
    def __init__(self, logits: Tensor, temperature: float, iterations: int = 3, functions: RowFunctions = PLAIN):
        self._functions = functions
        # a tensor, as compiled functions would be compiled again for each number
        self._temperature = torch.tensor(temperature, dtype=torch.float32)
        num_samples, num_prototypes = logits.shape
        # a constant shift does not change the result and keeps the exponential finite
        peak = logits.max().float() if num_samples else logits.new_full((), -torch.inf, dtype=torch.float32)
        self._peak = _all_reduce(peak, dist.ReduceOp.MAX)[None]
        self._prototype_factors = logits.new_ones(num_prototypes, dtype=torch.float32)
        for iteration in range(iterations):
            factors = self._prototype_factors if iteration else None
            chunks = row_chunks(num_samples, num_prototypes, logits.device)
            parts = (functions.masses((logits[rows],), self._peak, factors, self._temperature) for rows in chunks)
            masses = functools.reduce(torch.add, parts) if num_samples else torch.zeros_like(self._prototype_factors)
            self._prototype_factors = functions.balanced((self._prototype_factors, _all_reduce(masses)))

    @torch.no_grad()
    def __call__(self, logits: Tensor) -> Tensor:
        """Return the assignments (n, K), float32, of n of the samples from their logits; each row sums to 1."""
        return self._functions.assignments((logits,), self._peak, self._prototype_factors, self._temperature)


@torch.no_grad()
def prototype_losses(
    features: Tensor,
    prototypes: Tensor,
    targets: RowTargets,
    temperature: float,
    weights: Tensor,
    same_view: tuple[Tensor, Tensor] | None = None,
    gradients: tuple[Tensor, Tensor] | None = None,
    functions: RowFunctions = PLAIN,
) -> tuple[Tensor, Tensor | None]:
    """Return cross-entropies of a student's logits, `features @ prototypes.T`, and add up their gradients.

    The cross-view, masked-patch and same-view losses are all of this form: the cross-entropy between targets q and the
    student's softmax p, `-sum_k q_k log p_k`. Only a chunk of rows of logits exists at a time.

    Args:
        features: (N, bottleneck), in the precision of the logits.
        prototypes: (K, bottleneck), in the same precision.
        targets: Returns the teacher's targets (n, K), float32, for a slice of n rows; their sums may exceed 1.
        temperature: Softmax temperature of the student.
        weights: Weight of each row's cross-entropy against the targets in the total (N,).
        same_view: For the same-view loss, another student's features (N, bottleneck), whose softmax gives the targets,
            and the weight of each row's cross-entropy against them in the total (N,).
        gradients: Float32 sums of the gradients of features and of prototypes, to which the gradients of the total
            are added; None if no gradients are wanted.
        functions: What is computed of chunks of rows, compiled or not.

    Returns:
        The cross-entropies against the teacher's targets (N,), and those against the other student (N,) or None; both
        without their weights.
    """
    losses, same_losses = [], []
    for rows in row_chunks(len(features), len(prototypes), features.device):
        chunk = features[rows]  # (n, bottleneck)
        same = (None, None) if same_view is None else (same_view[0][rows], same_view[1][rows])
        of_chunk, same_of_chunk, slopes = functions.cross_entropies(
            (chunk, targets(rows), weights[rows], *same), prototypes, temperature, gradients is not None
        )
        losses.append(of_chunk)
        if same_of_chunk is not None:
            same_losses.append(same_of_chunk)
        if gradients is None or slopes is None:
            continue
        gradients[0][rows].add_(scaled_product(slopes, prototypes, temperature))
        if slopes.dtype == gradients[1].dtype:
            gradients[1].addmm_(slopes.T, chunk, alpha=1 / temperature)
        else:
            gradients[1].add_(slopes.T @ chunk, alpha=1 / temperature)
        del slopes  # before the next chunk's logits exist
    none = weights[:0]  # there may be no rows
    return torch.cat([none, *losses]), None if same_view is None else torch.cat([none, *same_losses])


def koleo(features: Tensor) -> Tensor:
    """Return the Kozachenko-Leonenko regulariser, which spreads features over the sphere (arXiv 1806.03198).

    It is minus the mean log distance of each normalised feature to its nearest neighbour, as in DINOv2.

    Args:
        features: (N, D).

    Returns:
        A scalar, float32; 0 for fewer than 2 rows.
    """
    if features.shape[0] < 2:
        return features.float().sum() * 0
    with torch.autocast(features.device.type, enabled=False):
        features = F.normalize(features.float(), dim=-1, eps=1e-8)
        with torch.no_grad():
            similarity = features @ features.T  # (N, N)
            neighbours = similarity.fill_diagonal_(-1).argmax(dim=1)
        distances = F.pairwise_distance(features, features[neighbours], p=2, eps=1e-8)
        return -(distances + 1e-8).log().mean()


def row_chunks(num_rows: int, num_columns: int, device: torch.device) -> Iterator[slice]:
    """Yield slices that together cover the rows, each of as many as `CHUNK_LOGITS` of the device allows."""
    size = max(1, (CHUNK_LOGITS if device.type == "cpu" else CHUNK_LOGITS_ON_GPU) // num_columns)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def _all_reduce(tensor: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    if several_processes():
        dist.all_reduce(tensor, op=op)
    return tensor


def several_processes() -> bool:
    """Whether other processes take the same step."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
