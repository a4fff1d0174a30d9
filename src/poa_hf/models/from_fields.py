"""The `model` section of a recipe as a `PoaConfig`, with every field checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..formatting import one_line, shown_name, suggest
from ..yaml_files import located, read_mapping
from .configuration_poa import PoaConfig
from .declared_types import as_declared

# Fields that concern the library rather than the model, and those that training sets.
_LIBRARY_FIELDS = {
    *("transformers_version", "architectures", "dtype", "warm_started_from", "units_ordered_on"),
    *("distillation", "gram_teacher"),
}


def read_model_section(path: str | Path) -> dict[str, Any]:
    """Return the `model` section of a recipe, for `model_config`.

    Raises:
        ValueError: If the file has no such section or is not YAML.
    """
    model = read_mapping(path).get("model")
    if not isinstance(model, dict) or not isinstance(model.get("backbone_config", {}), dict):
        raise ValueError(f"{path} has no `model:` section with the fields of PoaConfig.")
    return model


def model_config(model: Mapping[str, Any]) -> PoaConfig:
    """Return the configuration that a `model` section describes.

    Args:
        model: Fields of `PoaConfig`; under `backbone_config` those of an elastic backbone, `poa_vit` if it names no
            `model_type`.

    Raises:
        ValueError: For an unknown field (with the nearest ones) or a value that does not fit.

    Example:
        >>> config = model_config({"num_prototypes": [64], "backbone_config": {"hidden_size": 768}})
        >>> config.backbone_config.space.full
        SubNetwork(width=768, depths=(24,))
    """
    section = model.get("backbone_config") or {}
    backbone = dict(section)
    model_type = backbone.pop("model_type", "poa_vit")
    elastic = sorted(name for name in CONFIG_MAPPING if name.startswith("poa_"))
    try:
        with located(section):
            if model_type not in elastic:
                known = suggest(str(model_type), elastic)
                raise ValueError(f"model_type {model_type!r} is not an elastic model: {known}")
            backbone_class = CONFIG_MAPPING[model_type]
            for key in backbone:
                check_key(key, field_names(backbone_class), "model.backbone_config.")
            elastic_config = backbone_class(**as_declared(backbone_class, backbone))
        with located(model):
            for key in model:
                check_key(key, field_names(PoaConfig), "model.")
            return PoaConfig(**{**as_declared(PoaConfig, model), "backbone_config": elastic_config})
    except (StrictDataclassError, TypeError) as error:
        raise ValueError(f"Invalid model configuration: {one_line(error)}.") from error


def own_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the fields of a configuration that differ from their defaults, without those of the library."""
    names = field_names(type(config)) - _LIBRARY_FIELDS
    return {name: value for name, value in config.to_diff_dict().items() if name in names}


def field_names(config_class: type) -> set[str]:
    """Return the names of a configuration's public fields."""
    return {field.name for field in dataclasses.fields(config_class) if not field.name.startswith("_")}


def check_key(key: object, known: set[str], prefix: str = "") -> None:
    """Raise a ValueError for a key that is not among the known ones; the message suggests what to write instead."""
    if key not in known:
        general = field_names(PreTrainedConfig) - {"hidden_size"}
        hint = suggest(str(key), known - general, prefix)
        raise ValueError(f"{prefix}{shown_name(key)} is not a known key: {hint}")
