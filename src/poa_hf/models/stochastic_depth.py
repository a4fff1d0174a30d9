"""Stochastic depth by subset: dropped images are not computed."""

from collections.abc import Callable

import torch
from torch import Tensor


def add_residual(hidden_states: Tensor, branch: Callable[[Tensor, Tensor], Tensor], drop_rate: float) -> Tensor:
    """`hidden_states` plus the residual `branch`, run on a random subset of the batch and rescaled.

    Keeps `max(1, floor(B * (1 - drop_rate)))` of the B images (first axis), and multiplies the branch by B over that
    number, as DINOv2's `drop_add_residual_stochastic_depth` does. `branch` gets the kept rows and their indices.
    """
    batch_size = hidden_states.shape[0]
    kept = max(1, int(batch_size * (1 - drop_rate)))
    index = torch.randperm(batch_size, device=hidden_states.device)[:kept]
    residual = branch(hidden_states[index], index)
    return hidden_states.index_add(0, index, residual.to(hidden_states.dtype), alpha=batch_size / kept)
