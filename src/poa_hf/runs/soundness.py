"""Whether checkpoints and models are sound: complete, as they were written, and of the kind that is expected.

Files of folders with checksums are compared with them. Those of folders without, which earlier versions have written,
are read as far as that shows damage: the checksum of each tensor in the optimizer's state, the sizes in the weights.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerState

from ..formatting import one_line
from .checksums import first_difference, has_checksums
from .json_files import read_object
from .layout import (
    CHECKPOINT_PARTS,
    CONFIG,
    COUNTS,
    OPTIMIZER_STATE,
    PROCESSOR,
    TRAINER_STATE,
    WEIGHTS,
    WEIGHTS_INDEX,
    data_states,
    has_optimizer_state,
    is_checkpoint_name,
)

_TORCH_FILE_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, NotImplementedError, OSError, EOFError, RuntimeError),  # of the container
    *(ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError),  # of its content
)


def missing_parts(checkpoint: Path) -> list[str]:
    """The names of the files that a checkpoint lacks: of the model, the optimizer, the trainer or the data."""
    missing = [name for name in CHECKPOINT_PARTS if not (checkpoint / name).exists()]
    missing += [] if has_weights(checkpoint) else [WEIGHTS]
    return missing + ([] if has_optimizer_state(checkpoint) else [OPTIMIZER_STATE])


def has_weights(folder: Path) -> bool:
    """Whether a model's weights exist: one file, or every file that an index lists."""
    try:
        return all((folder / name).exists() for name in weight_files(folder))
    except ValueError:
        return False


def weight_files(folder: Path) -> list[str]:
    """The names of the files with a model's weights: one, or those that an index lists.

    Raises:
        ValueError: If the index is damaged.
    """
    index = folder / WEIGHTS_INDEX
    if not index.exists():
        return [WEIGHTS]
    files = read_object(index).get("weight_map")
    names = list(files.values()) if isinstance(files, dict) else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise ValueError(f"{index} does not list the files of the weights.")
    return sorted(set(names))


def checkpoint_damage(checkpoint: Path, thorough: bool = True) -> str | None:
    """What keeps a run from being resumed from a checkpoint, in words; None if it is sound.

    Args:
        checkpoint: The folder of the checkpoint.
        thorough: Whether to read weights and optimizer state too, which takes a second for each GB or two; otherwise
            only their sizes are compared.
    """
    if missing := missing_parts(checkpoint):
        return f"it lacks {', '.join(missing)}"
    if has_checksums(checkpoint):
        large = [*weight_files(checkpoint), *([OPTIMIZER_STATE] if (checkpoint / OPTIMIZER_STATE).exists() else [])]
        if difference := first_difference(checkpoint, thorough, [*CHECKPOINT_PARTS, *large]):
            return difference
    try:
        read_counts(checkpoint)
        state = read_trainer_state(checkpoint)
        for path in data_states(checkpoint):
            read_object(path)
        if is_checkpoint_name(checkpoint.name) and int(checkpoint.name.rpartition("-")[2]) != state.global_step:
            return f"{TRAINER_STATE} is that of step {state.global_step}"
        if thorough and (checkpoint / OPTIMIZER_STATE).exists():  # DeepSpeed has a form of its own
            _check_optimizer_state(checkpoint / OPTIMIZER_STATE, with_tensors=not has_checksums(checkpoint))
    except ValueError as error:
        return str(error).removeprefix(f"{checkpoint}/").rstrip(".")
    return model_damage(checkpoint, thorough=False)


def model_damage(folder: Path, thorough: bool = True) -> str | None:
    """What keeps the model in a folder from being loaded, in words; None if it is sound.

    Args:
        folder: The folder of a run, a checkpoint or any saved model. Only the files of the model are looked at.
        thorough: Whether to read the weights too; otherwise only their size is compared.
    """
    try:
        files = weight_files(folder)
        missing = [name for name in (CONFIG, *files) if not (folder / name).exists()]
        if missing:
            return f"it lacks {', '.join(missing)}"
        if has_checksums(folder):
            of_model = {CONFIG, WEIGHTS_INDEX, PROCESSOR, *files}
            if difference := first_difference(folder, thorough, [CONFIG, *files], of_model):
                return difference
        read_object(folder / CONFIG)
        for name in files:
            _check_safetensors(folder / name)
    except ValueError as error:
        return str(error).removeprefix(f"{folder}/").rstrip(".")
    return None


def read_counts(checkpoint: Path) -> dict[str, int]:
    """Read the batch size and the counts of steps that were not finite.

    Raises:
        ValueError: If they are damaged.
    """
    path = checkpoint / COUNTS
    counts = read_object(path)
    for name in ("global_batch_size", "nonfinite_steps", "in_a_row"):
        if type(counts.get(name)) is not int or counts[name] < 0:
            raise ValueError(f"{path} is damaged: its {name} is not a whole number.")
    return counts


def read_trainer_state(checkpoint: Path) -> TrainerState:
    """Read the step, the log history and the best evaluation.

    Raises:
        ValueError: If they are damaged.
    """
    path = checkpoint / TRAINER_STATE
    content = read_object(path)
    kinds = {
        "global_step": int,
        "log_history": list,
        "best_metric": int | float | None,
        "best_global_step": int | None,
        "best_model_checkpoint": str | None,
    }
    for name, kind in kinds.items():
        value = content.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{path} is damaged: its {name} is {one_line(value, 60)}.")
    if content["global_step"] < 0 or not all(isinstance(line, dict) for line in content["log_history"]):
        raise ValueError(f"{path} is damaged: its step or its log_history cannot be those of a run.")
    try:
        return TrainerState.load_from_json(str(path))
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {one_line(error, 100)}.") from error


def _check_safetensors(path: Path) -> None:
    """Check that the sizes in a file's header fit the file; the tensors are not read."""
    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged: {one_line(error, 100)}.") from error


def _check_optimizer_state(path: Path, with_tensors: bool) -> None:
    """Check that a file is an optimizer's state and, `with_tensors`, the checksums that torch adds to its tensors."""
    try:
        if with_tensors:
            with zipfile.ZipFile(path) as file:
                if broken := file.testzip():
                    raise ValueError(f"the checksum of {broken} is wrong")
        state = torch.load(path, map_location="meta", mmap=True, weights_only=True)
        if not _is_optimizer_state(state):
            raise ValueError("it is not the state of an optimizer")
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is damaged: it holds other objects than tensors and numbers.") from error
    except _TORCH_FILE_ERRORS as error:
        raise ValueError(f"{path} is damaged: {one_line(error, 100)}.") from error


def _is_optimizer_state(state: Any) -> bool:
    if not isinstance(state, dict) or not isinstance(state.get("param_groups"), list):
        return False
    of_parameters = state.get("state")
    if not isinstance(of_parameters, dict) or not all(isinstance(values, dict) for values in of_parameters.values()):
        return False
    return all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in state["param_groups"])
