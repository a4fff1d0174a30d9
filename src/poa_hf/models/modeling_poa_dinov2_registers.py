"""The elastic DINOv2 with registers: stock blocks, whose leading parameters are smaller ViTs."""

from __future__ import annotations

from torch import nn
from transformers import Dinov2WithRegistersModel
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersEmbeddings,
    Dinov2WithRegistersEncoder,
    Dinov2WithRegistersLayer,
)

from ..slice_rules import SliceRules
from .configuration_poa_dinov2_registers import PoaDinov2RegistersConfig
from .elastic_vit_model import ElasticViTModelMixin, SubsetDepthMixin
from .packed_crops import PackedLayerMixin, PackedModelMixin


class PoaDinov2RegistersLayer(PackedLayerMixin, SubsetDepthMixin, Dinov2WithRegistersLayer):
    """A DINOv2 block for crops of one resolution or several, which computes no image that stochastic depth drops."""


class PoaDinov2RegistersEncoder(Dinov2WithRegistersEncoder):
    """The blocks of an elastic DINOv2 with registers."""

    def __init__(self, config: PoaDinov2RegistersConfig):
        # not Dinov2WithRegistersEncoder's, which would build every block twice
        super(Dinov2WithRegistersEncoder, self).__init__(config)
        self.layer = nn.ModuleList(PoaDinov2RegistersLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()


class PoaDinov2RegistersModel(PackedModelMixin, ElasticViTModelMixin, Dinov2WithRegistersModel):
    """An elastic DINOv2 with registers: the full size and, by `sub_network`, every smaller one inside it."""

    config_class = PoaDinov2RegistersConfig
    config: PoaDinov2RegistersConfig
    _no_split_modules = ["Dinov2WithRegistersEmbeddings", "PoaDinov2RegistersLayer"]
    slice_rules = SliceRules(blocks="encoder.layer.{block}")
    patch_embedding = r"embeddings\.patch_embeddings\."
    stock_class = Dinov2WithRegistersModel

    def __init__(self, config: PoaDinov2RegistersConfig):
        # not Dinov2WithRegistersModel's, which would build every block twice
        super(Dinov2WithRegistersModel, self).__init__(config)
        self.embeddings = Dinov2WithRegistersEmbeddings(config)
        self.encoder = PoaDinov2RegistersEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()
