"""Read files of weights from elsewhere without running any code that they contain."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..formatting import one_line

# Keys of training checkpoints that hold the weights, the preferred one first; DINO's evaluation saves {"teacher": ...}.
_HOLDERS = ("teacher", "student", "model", "state_dict")


@dataclass(frozen=True)
class WeightsFile:
    """The content of a file of weights.

    Attributes:
        weights: The tensors by name.
        other_keys: Keys of the file that hold something else, such as the state of an optimizer.
    """

    weights: dict[str, Tensor]
    other_keys: tuple[str, ...] = ()


def read_weights(path: str | Path) -> WeightsFile:
    """Read the tensors of a `.safetensors` file or of a file that `torch.save` wrote.

    Of the latter, only tensors and plain values are unpickled. Its weights may lie at the top level or under `teacher`,
    `student`, `model` or `state_dict`; the teacher's are preferred.

    Raises:
        ValueError: If the file does not exist, is damaged or of another kind, or holds more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the file of weights in it.")
    if not path.is_file():
        raise ValueError(f"The checkpoint {path} does not exist.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: copy the checkpoint again.")
    if path.suffix == ".safetensors":
        return WeightsFile(_read_safetensors(path))
    content, other_keys = _unpickle(path), []
    while isinstance(content, Mapping):
        holder = next((key for key in _HOLDERS if isinstance(content.get(key), Mapping)), None)
        if holder is None:
            break
        other_keys += [str(key) for key in content if key != holder]
        content = content[holder]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not weights by name.")
    weights = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    other_keys += [str(key) for key in content if key not in weights]
    return WeightsFile(weights, tuple(other_keys))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{path} is damaged, cut short, or no safetensors file ({one_line(error, 100)}): copy it again."
        ) from error


def _unpickle(path: Path) -> object:
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickle protocols that torch.save does not write
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+\w)", str(error))
        problem = (
            f"holds more than tensors ({refused[1]})"
            if refused
            else "holds more than tensors, or is no file of torch.save"
        )
        raise ValueError(
            f"{path} {problem}, and nothing of it was run: give a checkpoint that torch.load reads with "
            "weights_only=True, such as one that holds weights only."
        ) from error
    except Exception as error:  # a damaged file can raise almost anything
        raise ValueError(
            f"{path} is damaged or cut short ({one_line(error, 100)}): copy the checkpoint again."
        ) from error
