"""Files of weights as others saved them, read without running anything that they hold."""

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

# What holds the weights in a training checkpoint, the preferred first; DINO's evaluation saves {"teacher": ...}.
_HOLDERS = ("teacher", "student", "model", "state_dict")


@dataclass(frozen=True)
class WeightsFile:
    """`weights` by name; `beside` are the keys of the file that hold something else, as an optimiser's state."""

    weights: dict[str, Tensor]
    beside: tuple[str, ...] = ()


def read_weights(path: str | Path) -> WeightsFile:
    """The tensors of a `.safetensors` file, or of a file of `torch.save`, of which only tensors and plain values are
    unpickled. In the latter they may lie under `teacher`, `student`, `model` or `state_dict`; the teacher's go first.

    Raises:
        ValueError: If there is no such file, it is damaged or of another kind, or holds more than tensors.
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
    content, beside = _unpickle(path), []
    while isinstance(content, Mapping):
        holder = next((key for key in _HOLDERS if isinstance(content.get(key), Mapping)), None)
        if holder is None:
            break
        beside += [str(key) for key in content if key != holder]
        content = content[holder]
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not weights by name.")
    weights = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    beside += [str(key) for key in content if key not in weights]
    return WeightsFile(weights, tuple(beside))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{path} is damaged, cut short, or no safetensors file ({_sentence(error)}): copy it again."
        ) from error


def _unpickle(path: Path) -> object:
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols other than torch.save's
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+\w)", str(error))
        what = f"holds more than tensors ({found[1]})" if found else "holds more than tensors, or no file of torch.save"
        raise ValueError(
            f"{path} {what}, and nothing of it was run: give a checkpoint that torch.load reads with "
            "weights_only=True, as of the weights alone."
        ) from error
    except Exception as error:  # a damaged file can raise almost anything
        raise ValueError(f"{path} is damaged or cut short ({_sentence(error)}): copy the checkpoint again.") from error


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:100].rstrip(".") or type(error).__name__
