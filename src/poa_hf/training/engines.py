"""What the loop must know of the engines that Accelerate launches: one process, DDP, FSDP2 on the root, DeepSpeed.

A checkpoint is of a run, not of an engine: under FSDP2 too it holds whole weights and the optimizer's state by
parameter, so that it goes on with any number of processes, sharded or not. DeepSpeed alone keeps the optimizer's state
in a form of its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..runs.layout import OPTIMIZER_STATE, data_states
from .arguments import PoaTrainingArguments
from .optimization import build_optimizer

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def new_accelerator(args: PoaTrainingArguments) -> Accelerator:
    """The accelerator of a run, as the launcher's environment says. ValueError for what the method cannot use."""
    # Accelerate shares one state among all of a process's accelerators: a run before must not decide for this one.
    for shared in (AcceleratorState, GradientState):
        shared._reset_state()
    on_cpus = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not torch.accelerator.is_available()
    deepspeed = _asked_for("ACCELERATE_USE_DEEPSPEED")
    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    if on_cpus and deepspeed:
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    mixed_precision = "bf16" if args.bf16 else os.environ.get("ACCELERATE_MIXED_PRECISION")
    if mixed_precision == "fp16":
        raise ValueError("fp16 is not supported, as targets of small temperatures overflow in it: use bf16.")
    # Accelerate's name for no version is 1; some of its settings for that fail in it before they could be refused here
    if _asked_for("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("FSDP 1 is not supported: set fsdp_version: 2, as in configs/accelerate/fsdp2.yaml.")
    return Accelerator(
        # else several processes without a GPU would each take themselves for the only one
        cpu=on_cpus and not deepspeed,
        # DeepSpeed's own would cast the teacher too, whose moving average bfloat16 cannot hold
        mixed_precision="no" if deepspeed else mixed_precision,
        # the loop accumulates by itself; a number in the environment would only divide the loss
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with=args.trackers or None,
        project_dir=args.output_dir,
        kwargs_handlers=handlers,
    )


def _asked_for(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"


def _has_deepspeed(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def prepare(
    accelerator: Accelerator, model: PoaForPreTraining, args: PoaTrainingArguments
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model to call in training, on its device, and its optimizer."""
    if _has_deepspeed(accelerator):
        _configure_deepspeed(accelerator.deepspeed_plugin.deepspeed_config, args)
        return accelerator.prepare(model, build_optimizer(model, args))
    plugin = _sharding(accelerator)
    if plugin is None:
        return accelerator.prepare(model, build_optimizer(model, args))
    model.to(accelerator.device)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor, src=0)
    # Not by accelerator.prepare: it puts the patch embedding and the last norm into units of their own, and what is cut
    # from these after their forward pass is a shard. Without a policy of precision, as autocast does what it does in
    # DDP: losses, gradients and the moving average stay in float32.
    fully_shard(model, **({"offload_policy": plugin.cpu_offload} if plugin.cpu_offload else {}))
    return model, accelerator.prepare_optimizer(build_optimizer(model, args))


def _sharding(accelerator: Accelerator) -> FullyShardedDataParallelPlugin | None:
    """Accelerate's FSDP settings, if the launcher asks for it. ValueError for those that do not fit sub-networks."""
    if not _asked_for("ACCELERATE_USE_FSDP") or accelerator.num_processes == 1:
        return None
    # Accelerate leaves them out where there is no GPU, and would go on with DDP
    plugin = getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()
    if plugin.auto_wrap_policy is not None:
        raise ValueError(
            "fsdp_auto_wrap_policy must be NO_WRAP: sub-networks are cut from whole weights, so the model is sharded "
            "as one unit."
        )
    if plugin.activation_checkpointing:
        raise ValueError("fsdp_activation_checkpointing is not supported: use --gradient_checkpointing instead.")
    return plugin


def _configure_deepspeed(config: dict, args: PoaTrainingArguments) -> None:
    """Tell DeepSpeed what the run's arguments say. ValueError for settings that do not fit the method."""
    if config["zero_optimization"]["stage"] > 2:
        raise ValueError("ZeRO-3 is not supported, as sub-networks are cut from whole weights: set zero_stage: 2.")
    for precision in ("bf16", "fp16"):
        if config.get(precision, {}).get("enabled") not in (None, False, "auto"):
            raise ValueError(
                f"DeepSpeed's {precision} is not supported, as it casts the teacher too, whose moving average needs "
                "float32: leave it out and use --bf16."
            )
    # the loop accumulates by itself
    config |= {"train_micro_batch_size_per_gpu": args.per_device_train_batch_size, "gradient_accumulation_steps": 1}
    config["gradient_clipping"] = args.max_grad_norm
    bf16 = args.bf16 or os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
    # no modules whose gradients are reduced in bfloat16
    config["torch_autocast"] = {"enabled": bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []}


@contextmanager
def accumulating(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Within, backward passes add to the gradients and change nothing else, in this process alone where possible."""
    with accelerator.no_sync(model):
        accelerator.gradient_state._set_sync_gradients(False)  # for DeepSpeed, whose backward would step
        try:
            yield
        finally:
            accelerator.gradient_state._set_sync_gradients(True)


@contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """Within, the parameters are plain tensors, for all that calls parts of the model. All processes enter together."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    try:
        yield
    finally:
        model.reshard()


def clip_grad_norm(accelerator: Accelerator, modules: Sequence[nn.Module], max_norm: float) -> Tensor:
    """Clip the gradients of each module to `max_norm`; the norm of all before that, over all processes' shards.

    DeepSpeed has clipped and stepped already, of all modules together, or skipped a step whose gradient is not finite.
    """
    if _has_deepspeed(accelerator):
        norm = accelerator.deepspeed_engine_wrapped.get_global_grad_norm()
        return torch.tensor(float(norm), device=accelerator.device)
    norms = [accelerator.clip_grad_norm_(module.parameters(), max_norm) for module in modules]
    return torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).norm()


def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's state dict with whole tensors, on the main process; under FSDP2 all processes call this, and the
    others get an empty one."""
    return get_model_state_dict(model, options=_WHOLE) if isinstance(model, FSDPModule) else model.state_dict()


def load_whole_state_dict(model: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Each process gives all tensors and keeps its shards."""
    if isinstance(model, FSDPModule):
        set_model_state_dict(model, state_dict, options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(state_dict)


def save_state(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """What Accelerate keeps of a run beside the model, which its hooks write. All processes call this."""
    if not isinstance(model, FSDPModule):
        accelerator.save_state(str(folder))
        return
    for hook in accelerator._save_model_state_pre_hook.values():
        hook([model], [], str(folder))
    state = tree_map(_whole, optimizer.state_dict())
    if accelerator.is_main_process:
        torch.save(state, folder / OPTIMIZER_STATE)


def load_state(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Model and optimizer of a checkpoint. ValueError for one of another form."""
    processes = len(data_states(folder))
    by_deepspeed = not (folder / OPTIMIZER_STATE).exists()
    if by_deepspeed != _has_deepspeed(accelerator):
        with_or_without = "with" if by_deepspeed else "without"
        raise ValueError(f"{folder} was written {with_or_without} DeepSpeed: go on {with_or_without} it.")
    if by_deepspeed and processes != accelerator.num_processes:
        raise ValueError(f"{folder} was written by DeepSpeed with {processes} processes: go on with as many.")
    if not isinstance(model, FSDPModule):
        accelerator.load_state(str(folder))
        return
    for hook in accelerator._load_model_state_pre_hook.values():
        hook([model], str(folder))
    saved = torch.load(folder / OPTIMIZER_STATE, map_location="cpu", weights_only=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in saved["state"].items():
        like = parameters[index]
        for name, value in values.items():
            if isinstance(like, DTensor) and value.shape == like.shape:
                value = value.to(like.device)
                values[name] = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    optimizer.load_state_dict(saved)


def _whole(value):
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value
