"""Count the FLOPs of a step, with the attention kernels of CPUs, which PyTorch's counter does not know."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(run: Callable[[], Any]) -> int:
    """Return the FLOPs of the matrix products in one call; a multiplication and its addition count as two."""
    with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
        run()
    return counter.get_total_flops()


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * query[:-1].numel() * key[-2] * (query[-1] + value[-1])


# the backward pass has five matrix products to the forward pass's two
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda gradient, *shapes, **kwargs: (
        5 * _attention_flops(*shapes[:3]) // 2
    ),
}
