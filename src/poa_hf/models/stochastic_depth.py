"""Stochastic depth by subset: the images that are dropped are not computed."""

from collections.abc import Callable

import torch
from torch import Tensor


def num_kept(batch_size: int, drop_rate: float) -> int:
    """Return how many images of a batch a branch computes."""
    return max(1, int(batch_size * (1 - drop_rate)))


def add_residual(hidden_states: Tensor, branch: Callable[[Tensor, Tensor], Tensor], drop_rate: float) -> Tensor:
    """Return the hidden states plus a residual branch that is computed for a random subset of the batch, and rescaled.

    `max(1, floor(B * (1 - drop_rate)))` images are kept, and the branch is multiplied by B over their number, as in
    DINOv2's `drop_add_residual_stochastic_depth`.

    Args:
        hidden_states: (B, ...).
        branch: Computes the residual from the kept rows and their indices.
        drop_rate: Share of images that skip the branch.
    """
    batch_size = hidden_states.shape[0]
    kept = num_kept(batch_size, drop_rate)
    index = torch.randperm(batch_size, device=hidden_states.device)[:kept]  # (kept,)
    # not `hidden_states[index]`, whose gradient sorts the indices on a GPU, as they might repeat
    residual = branch(hidden_states.index_select(0, index), index)  # (kept, ...)
    return hidden_states.index_add(0, index, residual.to(hidden_states.dtype), alpha=batch_size / kept)
