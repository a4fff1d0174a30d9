"""The elastic ViT: stock DINOv2 blocks, whose leading parameters are smaller ViTs."""

from __future__ import annotations

from torch import nn
from transformers import Dinov2Model
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings, Dinov2Encoder, Dinov2Layer

from ..slice_rules import SliceRules
from .configuration_poa_vit import PoaViTConfig
from .elastic_vit_model import ElasticViTModelMixin, SubsetDepthMixin
from .packed_crops import PackedLayerMixin, PackedModelMixin


class PoaViTLayer(PackedLayerMixin, SubsetDepthMixin, Dinov2Layer):
    """A DINOv2 block for crops of one resolution or several, which computes no image that stochastic depth drops."""


class PoaViTEncoder(Dinov2Encoder):
    """The blocks of an elastic ViT."""

    def __init__(self, config: PoaViTConfig):
        # not Dinov2Encoder's, which would build every block twice
        super(Dinov2Encoder, self).__init__(config)
        self.layer = nn.ModuleList(PoaViTLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()


class PoaViTModel(PackedModelMixin, ElasticViTModelMixin, Dinov2Model):
    """An elastic ViT: the full size and, by `sub_network`, every smaller one inside it.

    Example:
        >>> import torch
        >>> config = PoaViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, min_hidden_size=16)
        >>> model = PoaViTModel(config).eval()
        >>> images = torch.rand(1, 3, 224, 224)
        >>> features = model(images, sub_network="16x1").pooler_output
        >>> features.shape
        torch.Size([1, 16])
        >>> small = model.extract("16x1")  # a stock model
        >>> type(small).__name__, torch.equal(small(images).pooler_output, features)
        ('Dinov2Model', True)
    """

    config_class = PoaViTConfig
    config: PoaViTConfig
    _no_split_modules = ["Dinov2Embeddings", "PoaViTLayer"]
    slice_rules = SliceRules(blocks="encoder.layer.{block}")
    patch_embedding = r"embeddings\.patch_embeddings\."
    stock_class = Dinov2Model

    def __init__(self, config: PoaViTConfig):
        # not Dinov2Model's, which would build every block twice
        super(Dinov2Model, self).__init__(config)
        self.embeddings = Dinov2Embeddings(config)
        self.encoder = PoaViTEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()
