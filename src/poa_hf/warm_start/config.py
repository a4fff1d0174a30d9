"""The elastic configuration whose full size is a pre-trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING
from transformers import BitImageProcessorPil as ImageProcessor

from ..data.crop_arguments import usual_statistics
from ..models.elastic_config import ElasticConfigMixin
from ..models.from_fields import field_names
from .channels import Statistics
from .positions import square_image_size
from .source import Source, find_source
from .stock import decisive_fields, elastic_class, fields_in_family

# Fields of a stock model that are the defaults of a run's, besides those that decide what its parameters compute.
_KEPT_OF_STOCK = {"layerscale_value", "pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"}
# Fields that a run may change, as the source's weights are adapted (`channels`).
_ADAPTED = {"num_channels"}
# Why a field must be the source's, where it is not obvious from the shapes of parameters.
_REASONS = {
    "patch_size": "a patch embedding for other patches would compute something else",
    "window_size": "the relative position bias belongs to its windows",
    "layer_norm_eps": "the model's function depends on it",
    "rope_theta": "queries and keys would be turned by other angles",
}


def warm_start_config(source: str | Path, **fields: Any) -> ElasticConfigMixin:
    """Return the elastic backbone configuration whose full size is a pre-trained model, for `init_from`.

    Args:
        source: Folder or Hub id of a model, as `init_from` takes it. Files of the authors' have no configuration.
        **fields: Fields of the elastic configuration, such as the smallest size, the steps or another `image_size`. By
            default, the space has the published proportions, rounded to whole heads.

    Returns:
        The configuration of the elastic family that fits the source, such as a `PoaViTConfig`.

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
        explicit: Fields that the user set. They may not contradict the source; None counts as not set, except for the
            augmentation of rotary positions, which it turns off.

    Raises:
        ValueError: If an explicit field contradicts the source.
    """
    if source.config is None:
        return dict(explicit)
    check_architecture(source, explicit)
    config, fixed = source.config, _architecture(source)
    family = elastic_class(config.model_type)
    theirs = fields_in_family(config, source.name)
    defaults = {name: _plain(name, theirs[name]) for name in _inherited(family, source) if name in theirs}
    defaults["image_size"] = square_image_size(config, source.name)
    # None turns a field of the source off where it can be off, and means "not given" elsewhere
    can_be_off = _KEPT_OF_STOCK | {"num_candidates"}
    explicit = {name: value for name, value in explicit.items() if value is not None or name in can_be_off}
    if config.model_type == "swin" and "embed_dim_step" not in explicit:
        # with few heads, the published 3/4 of the width would be the full width again: take one step less
        elastic: Any = family(**defaults, **{n: v for n, v in fixed.items() if n != "model_type"})
        if elastic.min_embed_dim == elastic.embed_dim > elastic.embed_dim_step:
            defaults["min_embed_dim"] = elastic.embed_dim - elastic.embed_dim_step
    return {**defaults, **fixed, **explicit}


def _inherited(family: type[ElasticConfigMixin], source: Source) -> set[str]:
    """The names of fields that a run may change, and that the source's values are the defaults of."""
    if isinstance(source.config, family):  # a run, or its backbone: its sizes and how it was trained
        own = {name for name in field_names(family) if name.startswith("min_") or name.endswith("_step")}
        return {*family.shared_fields, *family.pretraining_fields, *own, "sampling_bias", "num_candidates"}
    # dropout and stochastic depth of a stock model are those of its last training, not of this one
    return _ADAPTED | _KEPT_OF_STOCK & {*family.shared_fields, *family.pretraining_fields}


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
    family = elastic_class(source.backbone_config.model_type)
    theirs = fields_in_family(source.backbone_config, source.name)
    return {"model_type": family.model_type} | {
        name: _plain(name, theirs.get(name)) for name in decisive_fields(family) if name not in _ADAPTED
    }


def _plain(name: str, value: Any) -> Any:
    """A value in the form that is compared: sides of a square as one number, several numbers as a list."""
    if isinstance(value, list | tuple):
        value = list(value)
        if name in ("image_size", "patch_size") and len(set(value)) == 1:
            return value[0]
    return value


def normalisation(source: Source) -> dict[str, list[float]]:
    """Return what the source's image processor says of `image_mean`, `image_std` and `image_range`."""
    if source.kind == "official":
        return {}
    try:
        content, _ = ImageProcessor.get_image_processor_dict(source.location)
    except (OSError, ValueError):
        return {}
    channels = source.backbone_config.num_channels
    if content.get("do_normalize") is False:
        return {"image_mean": [0.0] * channels, "image_std": [1.0] * channels}
    lists: dict[str, list[float]] = {}
    for name, length in {"image_mean": channels, "image_std": channels, "image_range": 2}.items():
        values = content.get(name)
        if isinstance(values, list) and len(values) == length:
            lists[name] = values
    return lists if "image_mean" in lists and "image_std" in lists else {}


def adapted_normalisation(source: Source, num_channels: int) -> dict[str, list[float]]:
    """Return the default normalisation of a run on images of so many channels that starts from the source.

    Other channels than the source's all get the averages of its mean and standard deviation.
    """
    known = normalisation(source)
    if source.kind == "official" or num_channels == source.backbone_config.num_channels:
        return known
    mean, std = source_statistics(source).repeated(num_channels)
    return {**known, "image_mean": list(mean), "image_std": list(std)}


def source_statistics(source: Source) -> Statistics:
    """Return the statistics of the images that the source takes, or the usual ones if it does not say."""
    known = normalisation(source)
    if known:
        return Statistics(known["image_mean"], known["image_std"])
    return Statistics(*usual_statistics(source.backbone_config.num_channels))
