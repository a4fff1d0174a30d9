"""Load configurations, models and image processors that anybody may have saved, without running anything of theirs.

This is the only module that calls `from_pretrained` of transformers. It reads safetensors files only, so nothing is
unpickled; and `trust_remote_code=False` keeps transformers from running a repository's Python files and from asking
whether it may.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import CONFIG_MAPPING, AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import logging as transformers_logging

from ..formatting import format_quantity, one_line
from ..slicing import without_storage
from .elastic_config import ElasticConfigMixin
from .saved_files import check_processor_fields, check_weight_files, read_config_fields, saved_folder

_LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
_NEW_PARAMETERS = 1 << 20  # that a model may have besides those of its file, such as a pooler


def load_saved_config(location: str | Path, name: str | None = None, part: str | None = None) -> PreTrainedConfig:
    """Load the configuration of a saved model.

    Args:
        location: A folder, or a repository on the Hub.
        name: What errors call it; the location by default.
        part: The part of the model whose configuration to return, such as `backbone`; None for the whole.

    Raises:
        ValueError: If there is none, it cannot be read, or the model needs code that is not part of transformers.
    """
    return _part_of(_config(saved_folder(location), name or location), part)


def load_saved_model(
    model_class: type[PreTrainedModel] | type[AutoModel],
    location: str | Path,
    name: str | None = None,
    part: str | None = None,
    **options: Any,
) -> tuple[PreTrainedModel, list[str], list[str]]:
    """Load a model in float32, without transformers' report on missing weights.

    Args:
        model_class: A model class, or `AutoModel`.
        location: A folder, or a repository on the Hub.
        name: What errors call it; the location by default.
        part: The part of the saved model to load, such as `backbone`; None for the whole.
        options: Further arguments of the model's constructor.

    Returns:
        The model, and the sorted names of parameters that the file lacks and of those that were not used.

    Raises:
        ValueError: If there is no model, it cannot be read, needs code that is not part of transformers, has its
            weights in a pickle, or holds numbers that are not finite.
    """
    folder = saved_folder(location)
    shown = name or location
    config = _part_of(_config(folder, shown), part)
    if part is not None:
        options["key_mapping"] = {rf"^{part}\.": ""}
    files = check_weight_files(folder, shown)
    _check_memory(model_class, config, files, shown)
    with _one_sentence(f"The weights of {shown} cannot be loaded"), _without_report():
        loaded: Any = model_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # told below
            output_loading_info=True,
            **_LOCAL,
            **options,
        )
    model, report = loaded
    for parameter, stored, described in sorted(report["mismatched_keys"]):
        raise ValueError(
            f"The weights of {shown} cannot be loaded: {parameter} has the shape {tuple(stored)}, and config.json "
            f"describes {tuple(described)}."
        )
    for parameter, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{parameter} of {shown} holds values that are not finite: its file is damaged.")
    return model, sorted(report["missing_keys"]), sorted(report["unexpected_keys"])


def load_saved_processor(location: str | Path) -> BaseImageProcessor:
    """Load the image processor that was saved beside a model.

    Raises:
        ValueError: If there is none, it cannot be read, or it needs code that is not part of transformers.
    """
    folder = saved_folder(location)
    fields = check_processor_fields(folder, location)
    read_config_fields(folder, location)  # transformers reads it too, for models that have no file of their processor
    try:
        return AutoImageProcessor.from_pretrained(folder, **_LOCAL)
    except Exception as error:  # values of a stranger's file can make almost anything fail
        if fields.get("auto_map"):
            raise ValueError(_needs_code(location, "image processor")) from error
        raise ValueError(
            f"{location} has no image processor that can be loaded ({one_line(error)}): save one beside the model."
        ) from error


def _config(folder: Path, name: str | Path) -> PreTrainedConfig:
    fields = read_config_fields(folder, name)
    model_type = fields.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        if fields.get("auto_map"):
            raise ValueError(_needs_code(name, "model"))
        if not model_type:
            raise ValueError(f"{name} has no model_type in its config.json: give another model.")
        raise ValueError(
            f"{name} is of the type {one_line(model_type, 60)!r}, which transformers {transformers_version} does not "
            "know: give another model."
        )
    with _one_sentence(f"The configuration of {name} cannot be used"):
        config = AutoConfig.from_pretrained(folder, **_LOCAL)
        backbone = getattr(config, "backbone_config", config)
        if isinstance(backbone, ElasticConfigMixin):
            len(backbone.space)  # reports fields that make no space, or one that nobody could list
        return config


def _part_of(config: PreTrainedConfig, part: str | None) -> PreTrainedConfig:
    inner: PreTrainedConfig = config if part is None else getattr(config, f"{part}_config")
    return inner


def _needs_code(name: str | Path, part: str) -> str:
    return (
        f"{name} needs code of its own for its {part} (auto_map), which poa does not run: give a model of a type that "
        "transformers knows."
    )


def _check_memory(model_class: Any, config: PreTrainedConfig, files: list[Path], name: str | Path) -> None:
    """Raise a ValueError if a configuration asks for many more parameters than the weights hold.

    Parameters that the files lack are initialised, which could take all of the memory.
    """
    with _one_sentence(f"The weights of {name} cannot be loaded"):
        with without_storage():
            is_auto = not issubclass(model_class, PreTrainedModel)
            model = model_class.from_config(config, trust_remote_code=False) if is_auto else model_class(config)
        described = sum(parameter.numel() for parameter in model.parameters())
        stored = sum(map(_stored_numbers, files))
    if described > 2 * stored + _NEW_PARAMETERS:
        raise ValueError(
            f"{name} describes a model of {format_quantity(described)} parameters in its config.json, and its weights "
            f"hold {format_quantity(stored)}: copy both files again."
        )


def _stored_numbers(path: Path) -> int:
    """Return how many numbers a safetensors file holds, as its header says."""
    with safe_open(path, "pt") as file:
        names = file.keys()
        return sum(torch.Size(file.get_slice(name).get_shape()).numel() for name in names)


@contextmanager
def _one_sentence(problem: str) -> Iterator[None]:
    """Turn any error of a library into a ValueError of one sentence."""
    try:
        yield
    except Exception as error:  # values of a stranger's file can make almost anything fail
        reason = one_line(error)
        if not isinstance(error, OSError | ValueError | RuntimeError | ImportError) and reason != type(error).__name__:
            reason = f"{type(error).__name__}: {reason}"
        raise ValueError(f"{problem} ({reason}): give another model.") from error


@contextmanager
def _without_report() -> Iterator[None]:
    """Silence transformers' table of weights that are missing or do not fit, for callers with their own messages."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
