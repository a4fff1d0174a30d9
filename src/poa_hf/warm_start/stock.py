"""Which elastic family holds a stock model, and how the model's fields and parameters read in that family's terms.

A family extracts its sizes as one stock class, and holds every model of that class as it is. A few other classes
compute what such a class does under other names: they are translated here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig

from ..models.elastic_config import ElasticConfigMixin
from ..models.vit_names import dinov2_name

# Types whose blocks are those of `vit`, which are DINOv2's without LayerScale. DeiT's distillation token is a register.
_WITH_VIT_BLOCKS = {
    "vit": "poa_vit",
    "vit_mae": "poa_vit",
    "vit_msn": "poa_vit",
    "deit": "poa_dinov2_with_registers",
}
# Options that load a stock model with its mask token, and without a pooler that its checkpoint may lack.
LOADING_OPTIONS: dict[str, dict[str, bool]] = {
    "vit": {"add_pooling_layer": False, "use_mask_token": True},
    "vit_msn": {"use_mask_token": True},
    "deit": {"add_pooling_layer": False, "use_mask_token": True},
    "swin": {"use_mask_token": True},
}
# Fields that a run may change, as they only matter in training, or not for the features of a model.
_FREE_FIELDS = frozenset(
    "image_size initializer_range layerscale_value drop_path_rate hidden_dropout_prob attention_probs_dropout_prob "
    "attention_dropout pos_embed_shift pos_embed_jitter pos_embed_rescale use_mask_token encoder_stride "
    "apply_layernorm reshape_hidden_states".split()
)


def elastic_types() -> dict[str, str]:
    """Return the elastic type that holds each `model_type` a warm start can begin with; elastic ones hold themselves.

    >>> elastic_types()["vit_mae"], elastic_types()["poa_swin"]
    ('poa_vit', 'poa_swin')
    """
    types: dict[str, str] = {}
    for name in sorted(CONFIG_MAPPING):
        if name.startswith("poa_") and issubclass(elastic := CONFIG_MAPPING[name], ElasticConfigMixin):
            types |= {elastic.stock_config_class.model_type: name, name: name}
    return types | {stock: elastic for stock, elastic in _WITH_VIT_BLOCKS.items() if elastic in types}


def stock_types() -> list[str]:
    """Return every `model_type` that a warm start can begin with, without the elastic ones."""
    return sorted(stock for stock, elastic in elastic_types().items() if stock != elastic)


def elastic_class(model_type: str) -> type[ElasticConfigMixin]:
    """Return the configuration class of the elastic family that holds a `model_type`, one of `elastic_types`."""
    found: Any = CONFIG_MAPPING[elastic_types()[model_type]]
    return found


def decisive_fields(family: type[ElasticConfigMixin]) -> list[str]:
    """Return the names of the fields that decide what the parameters of an elastic model compute."""
    default = family()
    names = [*family.shared_fields, *default._size(default.space.full)]
    return [name for name in names if name not in _FREE_FIELDS]


def fields_in_family(config: PreTrainedConfig, name: str) -> dict[str, Any]:
    """Return the fields of a source's configuration in the terms of the elastic family that holds it.

    Args:
        config: Configuration of the source's backbone, of one of `elastic_types`.
        name: What errors call the source.

    Raises:
        ValueError: If the family cannot hold a value of theirs.
    """
    fields = config.to_dict()
    width, heads = fields.get("hidden_size"), fields.get("num_attention_heads")
    if "head_dim" in fields and width and heads and fields["head_dim"] * heads != width:
        raise ValueError(
            f"{name} has head_dim {fields['head_dim']}, while the {heads} heads of an elastic ViT share its "
            f"hidden_size of {width}: start from another model."
        )
    if config.model_type in _WITH_VIT_BLOCKS:
        ratio, remainder = divmod(config.intermediate_size, width)
        if remainder:
            raise ValueError(
                f"{name} has intermediate_size {config.intermediate_size}, which is no multiple of its hidden_size "
                f"{width}: the elastic ViT needs one, as its stock class dinov2 does."
            )
        fields |= {"mlp_ratio": ratio, "use_swiglu_ffn": False, "layerscale_value": 1.0}
        if config.model_type == "deit":
            fields["num_register_tokens"] = 1
    return fields


def tensors_in_family(tensors: Mapping[str, Tensor], config: PreTrainedConfig) -> dict[str, Tensor]:
    """Return the parameters of a source by the names of the elastic family that holds it.

    Args:
        tensors: The parameters by the names of the source's own class.
        config: Configuration of the source's backbone.
    """
    if config.model_type not in _WITH_VIT_BLOCKS:
        return dict(tensors)
    ours = {dinov2_name(name): tensor for name, tensor in tensors.items()}
    if config.model_type == "deit":
        # its second token has a position embedding, which a register has not: it becomes part of the token
        positions = ours["embeddings.position_embeddings"]
        ours["embeddings.register_tokens"] = ours.pop("embeddings.distillation_token") + positions[:, 1:2]
        ours["embeddings.position_embeddings"] = torch.cat([positions[:, :1], positions[:, 2:]], dim=1)
    return ours
