"""The moving average of modules, which the teacher is of the student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.sgd import sgd

# Parameters whose moving average is computed together, each operation in one kernel.
_TOGETHER = 64


@torch.no_grad()
def follow(pairs: Sequence[tuple[nn.Module, nn.Module]], momentum: float, skip: Tensor | None = None) -> None:
    """Set the first module of each pair to momentum * first + (1 - momentum) * second, in place.

    Args:
        pairs: Modules of the same parameters, whole or sharded alike (FSDP2).
        momentum: From 0 (a copy of the second) to 1 (no change).
        skip: A bool scalar on the device; if it is true, nothing changes. The host does not wait for it.
    """
    averages = [tensor for average, _ in pairs for tensor in _local(average)]
    followed = [tensor for _, module in pairs for tensor in _local(module)]
    if skip is None:
        # torch's optimisers use it; there is no public function for lists of tensors
        torch._foreach_lerp_(averages, followed, 1 - momentum)
        return
    # Gradient descent on their distance is the same average, and can leave out a step without the host knowing.
    # Part by part, as the differences take as much memory as the tensors.
    for part in range(0, len(averages), _TOGETHER):
        tensors = averages[part : part + _TOGETHER]
        differences = torch._foreach_sub(tensors, followed[part : part + _TOGETHER])
        sgd(
            tensors, list(differences), [None] * len(tensors), fused=True, found_inf=skip.float(), lr=1 - momentum,
            weight_decay=0.0, momentum=0.0, dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip


def refuse_rounded_weights(model: nn.Module) -> None:
    """Check that a model's weights hold the small changes of its optimizer and of its moving average.

    Raises:
        ValueError: If some of them are of half precision.
    """
    rounded = [p.dtype for p in model.parameters() if torch.finfo(p.dtype).bits < 32]
    if rounded:
        raise ValueError(
            f"The model's weights are {str(rounded[0]).removeprefix('torch.')}, in which the small steps of the "
            "optimizer and of the teacher's moving average round to nothing: train model.float(), or load it by "
            "from_pretrained(..., dtype=torch.float32)."
        )


def _local(module: nn.Module) -> list[Tensor]:
    """Return a module's parameters or, under FSDP2, the shards of them that this process holds."""
    # a moving average is elementwise, and shards need no operation of distributed tensors
    return [p.to_local() if isinstance(p, DTensor) else p for p in module.parameters()]
