"""The elastic ViT: stock DINOv2 blocks, whose leading parameters are smaller ViTs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Dinov2Model
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings, Dinov2Encoder, Dinov2Layer

from ..elastic import SubNetwork
from ..slicing import SliceRules
from .configuration_poa_vit import PoaViTConfig
from .elastic_model import ElasticModelMixin
from .stochastic_depth import add_residual


class PoaViTLayer(Dinov2Layer):
    """A DINOv2 block whose stochastic depth does not compute the images that it drops."""

    def __init__(self, config: PoaViTConfig):
        super().__init__(config)
        self.drop_path_rate = config.drop_path_rate

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Return the block's output (B, tokens, D)."""
        if not self.training or self.drop_path_rate == 0:
            return super().forward(hidden_states, attention_mask, **kwargs)

        def attention(kept: Tensor, index: Tensor) -> Tensor:
            mask = None if attention_mask is None else attention_mask[index]
            return self.layer_scale1(self.attention(self.norm1(kept), attention_mask=mask, **kwargs)[0])

        def mlp(kept: Tensor, index: Tensor) -> Tensor:
            return self.layer_scale2(self.mlp(self.norm2(kept)))

        hidden_states = add_residual(hidden_states, attention, self.drop_path_rate)
        return add_residual(hidden_states, mlp, self.drop_path_rate)


class PoaViTEncoder(Dinov2Encoder):
    """The blocks of an elastic ViT."""

    def __init__(self, config: PoaViTConfig):
        # not Dinov2Encoder's, which would build every block twice
        super(Dinov2Encoder, self).__init__(config)
        self.layer = nn.ModuleList(PoaViTLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()


class PoaViTModel(ElasticModelMixin, Dinov2Model):
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

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        sub_network: SubNetwork | str | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Return the features of images.

        Args:
            pixel_values: (B, 3, H, W).
            bool_masked_pos: bool (B, patches), the patches that the mask token replaces.
            sub_network: The size that computes, or its text or name; None means the full one.
            kwargs: Further arguments of `Dinov2Model.forward`.

        Returns:
            `last_hidden_state` (B, 1 + patches, D), normalised, the class token first; `pooler_output` (B, D), the
            class token.
        """
        model = self.sliced(sub_network)
        if model is not self:
            return model(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)
        return super().forward(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)

    @staticmethod
    def image_tokens(output: BaseModelOutputWithPooling) -> tuple[Tensor, Tensor]:
        """Return what the projection heads read: the images' features (B, D) and their patches' (B, patches, D)."""
        images, tokens = output.pooler_output, output.last_hidden_state
        assert images is not None and tokens is not None  # ModelOutput's fields are optional
        return images, tokens[:, 1:]
