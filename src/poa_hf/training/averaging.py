"""How gradients are averaged over processes."""

# Annotations are not postponed here: torch compares those of the function that it is given with the types.
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def average_in_bfloat16(model: nn.Module) -> None:
    """Let DDP send gradients in bfloat16; averages are again in the gradients' type.

    Args:
        model: A model that may be wrapped for DDP. Another one is left as it is.
    """
    if isinstance(model, DistributedDataParallel):
        model.register_comm_hook(None, _average)


def _average(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    # torch's bf16_compress_hook does the same, but refuses gloo
    whole = bucket.buffer()
    rounded = whole.to(torch.bfloat16).div_(dist.get_world_size())
    future = dist.all_reduce(rounded, async_op=True).get_future()
    return future.then(lambda done: whole.copy_(done.value()[0]))
