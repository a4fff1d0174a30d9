"""Model and optimizer as whole tensors in checkpoints, which any engine writes and reads.

A checkpoint does not depend on the engine that wrote it: under FSDP2 too it holds whole weights and the optimizer's
state by parameter, so that any number of processes can resume it, sharded or not. Only DeepSpeed keeps the optimizer's
state in another form.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from ..runs.layout import DEEPSPEED_STATE, OPTIMIZER_STATE, data_states
from .engines import has_deepspeed

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def whole_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state dict with whole tensors. All processes call this.

    Under FSDP2 only the main process gets it; the others get an empty dict.
    """
    if not isinstance(model, FSDPModule):
        return model.state_dict()
    return cast("dict[str, Tensor]", get_model_state_dict(model, options=_WHOLE))


def load_whole_state_dict(model: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Load a state dict of whole tensors, which every process gives; under FSDP2 each keeps its shards."""
    if isinstance(model, FSDPModule):
        set_model_state_dict(model, dict(state_dict), options=StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(state_dict)


def save_state(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    write_model: Callable[[Path], None],
) -> None:
    """Write model and optimizer into a checkpoint. All processes call this.

    Args:
        write_model: Writes the model's own files into a folder.
    """
    if isinstance(model, FSDPModule):
        write_model(folder)
        state = _whole_optimizer_state(optimizer)
        if accelerator.is_main_process:
            torch.save(state, folder / OPTIMIZER_STATE)
        return

    def write_model_once(models: list[nn.Module], weights: list[dict], output_dir: str) -> None:
        weights.clear()  # Accelerate would write them a second time
        write_model(Path(output_dir))

    with accelerator.register_save_state_pre_hook(write_model_once):  # removed at the end
        accelerator.save_state(str(folder))


def load_state(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    checkpoint: Path,
    read_model: Callable[[Path], None],
) -> None:
    """Restore model and optimizer from a checkpoint. All processes call this.

    Args:
        read_model: Restores the model from its files in a folder.

    Raises:
        ValueError: If DeepSpeed wrote the checkpoint and this run does without it, or the other way round; or if
            DeepSpeed wrote it with another number of processes.
    """
    num_processes = len(data_states(checkpoint))
    by_deepspeed = (checkpoint / DEEPSPEED_STATE).is_dir()
    if by_deepspeed != has_deepspeed(accelerator):
        with_or_without = "with" if by_deepspeed else "without"
        raise ValueError(f"{checkpoint} was written {with_or_without} DeepSpeed: resume {with_or_without} it.")
    if by_deepspeed and num_processes != accelerator.num_processes:
        raise ValueError(
            f"{checkpoint} was written by DeepSpeed with {num_processes} processes: resume with the same number."
        )
    if isinstance(model, FSDPModule):
        read_model(checkpoint)
        saved = torch.load(checkpoint / OPTIMIZER_STATE, map_location="cpu", weights_only=True)
        _load_whole_optimizer_state(optimizer, saved)
        return

    def read_model_once(models: list[nn.Module], input_dir: str) -> None:
        models.clear()  # Accelerate did not write their weights
        read_model(Path(input_dir))

    with accelerator.register_load_state_pre_hook(read_model_once):  # removed at the end
        accelerator.load_state(str(checkpoint))


def _whole_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the optimizer's state dict with whole tensors on the CPU. All processes call this."""

    def whole(value: Any) -> Any:
        return value.full_tensor().cpu() if isinstance(value, DTensor) else value

    saved = optimizer.state_dict()
    state = {index: {name: whole(value) for name, value in values.items()} for index, values in saved["state"].items()}
    return {**saved, "state": state}


def _load_whole_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a state dict of whole tensors, of which each process keeps its shards."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, values in saved["state"].items():
        parameter = parameters[index]
        for name, value in values.items():
            if isinstance(parameter, DTensor) and value.shape == parameter.shape:
                value = value.to(parameter.device)
                values[name] = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    optimizer.load_state_dict(saved)
