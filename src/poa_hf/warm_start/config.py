"""The elastic configuration whose full size is a pre-trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING
from transformers import BitImageProcessorPil as ImageProcessor

from ..models.elastic_config import ElasticConfigMixin
from .source import ELASTIC_TYPES, Source, find_source

# For each elastic type, the fields that decide what its parameters compute: the source's values are kept.
_FIXED_FIELDS = {
    "poa_vit": "hidden_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps patch_size num_channels "
    "qkv_bias mlp_ratio use_swiglu_ffn",
    "poa_swin": "embed_dim depths num_heads window_size mlp_ratio qkv_bias hidden_act layer_norm_eps patch_size "
    "num_channels use_absolute_embeddings",
    "poa_resnet": "embedding_size hidden_sizes depths base_width num_groups hidden_act layer_norm_eps num_channels",
}
# Why a field must be the source's, where it is not obvious from the shapes of parameters.
_REASONS = {
    "patch_size": "a patch embedding for other patches would compute something else",
    "window_size": "the relative position bias belongs to its windows",
    "layer_norm_eps": "the model's function depends on it",
}


def warm_start_config(source: str | Path, **fields: Any) -> ElasticConfigMixin:
    """Return the elastic backbone configuration whose full size is a pre-trained model, for `init_from`.

    Args:
        source: Folder or Hub id of a model, as `init_from` takes it. Files of the authors' have no configuration.
        **fields: Fields of the elastic configuration, such as the smallest size, the steps or another `image_size`. By
            default, the space has the published proportions, rounded to whole heads.

    Returns:
        A `PoaViTConfig`, `PoaSwinConfig` or `PoaResNetConfig`, as fits the source.

    Raises:
        ValueError: If a field contradicts the source, or no elastic model can start from it.

    Example:
        >>> from transformers import Dinov2Config
        >>> from poa_hf import warm_start_config
        >>> Dinov2Config(hidden_size=64, num_hidden_layers=4, num_attention_heads=4).save_pretrained("dinov2-tiny")
        >>> config = warm_start_config("dinov2-tiny", min_num_hidden_layers=3)
        >>> print(config.space.smallest, config.space.full)
        32x3 64x4
    """
    pretrained = find_source(source)
    if pretrained.config is None:
        raise ValueError(f"{source} is a file without a configuration: give the one that it was trained with.")
    merged = backbone_fields(pretrained, fields)
    elastic: Any = CONFIG_MAPPING[merged.pop("model_type")](**merged)
    return elastic


def backbone_fields(source: Source, explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an elastic backbone configuration that starts from a source.

    Args:
        source: The model to start from. If it is elastic itself, the smallest size and the steps default to its own.
        explicit: Fields that the user set. They may not contradict the source; None counts as not set.

    Raises:
        ValueError: If an explicit field contradicts the source.
    """
    if source.config is None:
        return dict(explicit)
    check_architecture(source, explicit)
    fixed = _architecture(source)
    model_type = fixed["model_type"]
    config = source.config
    defaults = {"image_size": _plain("image_size", config.image_size)}
    if config.model_type == model_type:  # the source is elastic itself
        names = {name for name in config.to_dict() if name.startswith("min_") or name.endswith("_step")}
        defaults |= {name: _plain(name, getattr(config, name)) for name in {*names, "sampling_bias"}}
    if model_type == "poa_vit":
        defaults["layerscale_value"] = getattr(config, "layerscale_value", 1.0)
    explicit = {name: value for name, value in explicit.items() if value is not None}
    if config.model_type == "swin" and "embed_dim_step" not in explicit:
        # with few heads, the published 3/4 of the width would be the full width again: take one step less
        elastic = CONFIG_MAPPING[model_type](**defaults, **{n: v for n, v in fixed.items() if n != "model_type"})
        if elastic.min_embed_dim == elastic.embed_dim > elastic.embed_dim_step:
            defaults["min_embed_dim"] = elastic.embed_dim - elastic.embed_dim_step
    return {**defaults, **fixed, **explicit}


def check_architecture(source: Source, fields: Mapping[str, Any]) -> None:
    """Refuse an elastic configuration whose full size is not the source.

    Args:
        source: The model to start from.
        fields: Fields of the elastic configuration; those that are None or absent are not compared.

    Raises:
        ValueError: For the first field that differs.
    """
    for name, theirs in _architecture(source).items():
        ours = _plain(name, fields.get(name))
        if ours is None or ours == theirs:
            continue
        if name == "model_type":
            raise ValueError(
                f"model_type is {ours}, but {source.name} is a {source.backbone_config.model_type!r} model: leave it "
                f"out, or give {theirs}."
            )
        reason = f" ({_REASONS[name]})" if name in _REASONS else ""
        raise ValueError(
            f"{name} is {ours}, but {source.name} has {theirs}: leave it out, as the full size is that of the "
            f"source{reason}, or start from another model."
        )


def _architecture(source: Source) -> dict[str, Any]:
    """The fields of the elastic configuration that only the source can decide, with `model_type`."""
    config = source.backbone_config
    model_type = ELASTIC_TYPES[config.model_type]
    if hasattr(config, "head_dim"):
        raise ValueError(f"{source.name} has head_dim {config.head_dim}, which the elastic ViT cannot hold.")
    fields = {name: _plain(name, getattr(config, name, None)) for name in _FIXED_FIELDS[model_type].split()}
    if config.model_type == "vit":
        fields["mlp_ratio"], remainder = divmod(config.intermediate_size, config.hidden_size)
        if remainder:
            raise ValueError(
                f"{source.name} has intermediate_size {config.intermediate_size}, which is no multiple of its "
                f"hidden_size {config.hidden_size}: the elastic ViT needs one."
            )
        fields["use_swiglu_ffn"] = False
    return {"model_type": model_type, **fields}


def _plain(name: str, value: Any) -> Any:
    """A value in the form that is compared: sides of a square as one number, several numbers as a list."""
    if isinstance(value, list | tuple):
        value = list(value)
        if name in ("image_size", "patch_size") and len(set(value)) == 1:
            return value[0]
    return value


def normalisation(source: Source) -> dict[str, list[float]]:
    """Return `image_mean` and `image_std` of the source's image processor; nothing where it does not say."""
    if source.kind == "official":
        return {}
    try:
        content, _ = ImageProcessor.get_image_processor_dict(source.location)
    except (OSError, ValueError):
        return {}
    if content.get("do_normalize") is False:
        return {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    statistics = {name: content.get(name) for name in ("image_mean", "image_std")}
    lists = {name: values for name, values in statistics.items() if isinstance(values, list) and len(values) == 3}
    return lists if len(lists) == 2 else {}
