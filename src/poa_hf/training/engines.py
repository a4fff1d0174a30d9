"""The engines that Accelerate launches: one process, DDP, FSDP2 with one unit, or DeepSpeed.

The loop and the checkpoints are the same for all of them; what differs is here, and in `engine_states` for checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    parse_flag_from_env,
)
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ..models.modeling_poa_pretraining import PoaForPreTraining
from .arguments import PoaTrainingArguments
from .averaging import average_in_bfloat16
from .optimization import build_optimizer


def new_accelerator(args: PoaTrainingArguments) -> Accelerator:
    """Make the accelerator of a run from its arguments and the launcher's environment.

    Raises:
        ValueError: For FSDP 1, which does not fit the method, and for pushing DeepSpeed's checkpoints.
    """
    # Accelerate shares one state among all accelerators of a process: settings of an earlier run must not stay.
    for shared in (AcceleratorState, GradientState):
        shared._reset_state()
    on_cpus = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available()
    deepspeed = _asked_for("ACCELERATE_USE_DEEPSPEED")
    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    if on_cpus and deepspeed:
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    if deepspeed and args.push_to_hub and args.hub_strategy in ("checkpoint", "all_checkpoints"):
        raise ValueError(
            f"hub_strategy is {args.hub_strategy!r}, but DeepSpeed writes its checkpoints as pickles, which are not "
            "pushed: give every_save or end, or train without DeepSpeed."
        )
    # Without a version Accelerate assumes 1, and some settings of that fail before they could be refused here.
    if _asked_for("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("FSDP 1 is not supported: set fsdp_version: 2, as in configs/accelerate/fsdp2.yaml.")
    return Accelerator(
        # otherwise each of several processes without a GPU would believe to be the only one
        cpu=on_cpus and not deepspeed,
        # DeepSpeed's mixed precision would cast the teacher too, whose moving average needs float32
        mixed_precision="bf16" if args.bf16 and not deepspeed else "no",
        # the loop accumulates; a number in the environment would only divide the loss
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=args.trackers or None,
        project_dir=args.output_dir,
        kwargs_handlers=handlers,
    )


def device_of_process() -> torch.device:
    """Return the CUDA device that the accelerator of this process will use; the CPU if that is no CUDA device.

    It is chosen as Accelerate does it (`accelerate/state.py`), before there is an accelerator.
    """
    if not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.device("cpu")
    if named := os.environ.get("ACCELERATE_TORCH_DEVICE"):
        return torch.device(named if named.startswith("cuda") else "cpu")
    rank = max(0, int(os.environ.get("LOCAL_RANK", 0)))  # -1 is that of a process which is the only one
    return torch.device("cuda", rank % torch.cuda.device_count())


def _asked_for(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def has_deepspeed(accelerator: Accelerator) -> bool:
    """Return whether DeepSpeed trains the model."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def prepare(
    accelerator: Accelerator, model: PoaForPreTraining, args: PoaTrainingArguments
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Make the optimizer, and put the model on its device and into the engine's wrapper.

    Returns:
        The model to call in training, and its optimizer.

    Raises:
        ValueError: For settings of FSDP or DeepSpeed that do not fit sub-networks.
    """
    if has_deepspeed(accelerator):
        configure_deepspeed(accelerator.deepspeed_plugin.deepspeed_config, args)
        return accelerator.prepare(model, build_optimizer(model, args))
    plugin = _sharding(accelerator)
    if plugin is None:
        wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, args))
        if args.reduce_dtype:
            average_in_bfloat16(wrapped)
        return wrapped, optimizer
    model.to(accelerator.device)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor, src=0)
    # Not by accelerator.prepare: it makes the patch embedding and the last norm separate units, which are shards again
    # after their forward pass, when sub-networks are sliced from them. Parameters have no lower precision, as autocast
    # does the same as under DDP: losses, gradients and the moving average stay in float32.
    precision = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if args.reduce_dtype else None)
    fully_shard(model, mp_policy=precision, **({"offload_policy": plugin.cpu_offload} if plugin.cpu_offload else {}))
    return model, accelerator.prepare_optimizer(build_optimizer(model, args))


def _sharding(accelerator: Accelerator) -> FullyShardedDataParallelPlugin | None:
    """Return Accelerate's FSDP settings if the launcher asks for FSDP; raise ValueError for unsuitable ones."""
    if not _asked_for("ACCELERATE_USE_FSDP") or accelerator.num_processes == 1:
        return None
    # Accelerate leaves them out where there is no GPU, and would use DDP.
    plugin = getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()
    if plugin.auto_wrap_policy is not None:
        raise ValueError(
            "fsdp_auto_wrap_policy must be NO_WRAP: sub-networks are sliced from whole weights, so that the model is "
            "sharded as one unit."
        )
    if plugin.activation_checkpointing:
        raise ValueError("fsdp_activation_checkpointing is not supported: use --gradient_checkpointing instead.")
    return plugin


def configure_deepspeed(config: dict, args: PoaTrainingArguments) -> None:
    """Put the run's arguments into DeepSpeed's configuration; raise ValueError for unsuitable settings."""
    if config["zero_optimization"]["stage"] > 2:
        raise ValueError("ZeRO-3 is not supported, as sub-networks are sliced from whole weights: set zero_stage: 2.")
    if args.reduce_dtype:
        raise ValueError(
            "reduce_dtype is for DDP and FSDP2: leave it out, and set communication_data_type in DeepSpeed's "
            "configuration."
        )
    for precision in ("bf16", "fp16"):
        if config.get(precision, {}).get("enabled") not in (None, False, "auto"):
            raise ValueError(
                f"DeepSpeed's {precision} is not supported, as it casts the teacher too, whose moving average needs "
                "float32: leave it out and use --bf16."
            )
    # the loop accumulates
    config |= {"train_micro_batch_size_per_gpu": args.per_device_train_batch_size, "gradient_accumulation_steps": 1}
    config["gradient_clipping"] = args.max_grad_norm
    # an empty list: no gradient is reduced in bfloat16
    config["torch_autocast"] = {"enabled": args.bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []}


@contextmanager
def accumulating(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Within this context, backward passes only add to the gradients.

    They make no step and, where the engine allows it, do not communicate.
    """
    with accelerator.no_sync(model):
        accelerator.sync_gradients = False  # for DeepSpeed, whose backward pass would make a step
        try:
            yield
        finally:
            accelerator.sync_gradients = True


@contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """Within this context, the model's parameters are whole, plain tensors, so that parts of it can be called.

    All processes enter and leave it together.

    Args:
        model: The model of a `PoaTrainer`, sharded or not.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def clip_grad_norm(accelerator: Accelerator, modules: Sequence[nn.Module], max_norm: float) -> Tensor:
    """Clip the gradient of each module to a norm of at most `max_norm`.

    DeepSpeed has already clipped the gradients of all modules together and made its step, or skipped it if they are
    not finite.

    Returns:
        The norm of all modules' gradients together before clipping, over all shards: a scalar on the device.
    """
    if has_deepspeed(accelerator):
        # only returns the norm here
        norm = accelerator.clip_grad_norm_([p for module in modules for p in module.parameters()], max_norm)
        return torch.tensor(float(norm), device=accelerator.device)
    norms = [accelerator.clip_grad_norm_(module.parameters(), max_norm) for module in modules]
    return torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).norm()
