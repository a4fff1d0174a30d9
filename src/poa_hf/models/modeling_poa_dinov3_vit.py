"""The elastic DINOv3 ViT: stock DINOv3 blocks, whose leading parameters are smaller ViTs."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import DINOv3ViTModel
from transformers.models.dinov3_vit.modeling_dinov3_vit import (
    DINOv3ViTEmbeddings,
    DINOv3ViTEncoder,
    DINOv3ViTLayer,
    DINOv3ViTRopePositionEmbedding,
    augment_patches_center_coordinates,
)

from ..slice_rules import SliceRules
from .configuration_poa_dinov3_vit import PoaDinov3ViTConfig
from .elastic_vit_model import ElasticViTModelMixin, SubsetDepthMixin


class PoaDinov3ViTLayer(SubsetDepthMixin, DINOv3ViTLayer):  # type: ignore[misc]  # positions are given by name
    """A DINOv3 block whose stochastic depth does not compute the images that it drops."""


class PoaDinov3ViTRopePositionEmbedding(DINOv3ViTRopePositionEmbedding):
    """Rotary positions of patches: stock ones, but in float32 in models of any type, and computed anew at each call.

    A stock model rounds its frequencies when it is converted to half precision, but not when it is loaded in half
    precision. Here they are never rounded, so that a model, what is saved of it and what is extracted from it are the
    same. Stock models also keep the coordinates of patches in a cache of the process, where those of the fake tensors
    that operations are counted with would stay.
    """

    config: PoaDinov3ViTConfig

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        exact = self.inv_freq
        super()._apply(fn, recurse)
        if self.inv_freq.dtype != exact.dtype:
            self.inv_freq = exact.to(self.inv_freq.device)
        return self

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines (patches, head size) of the angles by which queries and keys are turned.

        In training, positions are shifted, stretched and rescaled at random, once for all images of the call.

        Args:
            pixel_values: (B, C, H, W), of which only the shape, the type and the device matter.
        """
        rows, columns = (
            (torch.arange(0.5, count, device=pixel_values.device) / count)
            for count in (side // self.config.patch_size for side in pixel_values.shape[-2:])
        )
        centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)  # (patches, 2)
        centres = 2.0 * centres - 1.0
        if self.training:
            centres = augment_patches_center_coordinates(
                centres, self.config.pos_embed_shift, self.config.pos_embed_jitter, self.config.pos_embed_rescale
            )
        angles = 2 * math.pi * centres[:, :, None] * self.inv_freq[None, None, :]  # (patches, 2, head size / 4)
        angles = angles.flatten(1, 2).tile(2)
        return angles.cos().to(pixel_values.dtype), angles.sin().to(pixel_values.dtype)


class PoaDinov3ViTEncoder(DINOv3ViTEncoder):
    """The blocks of an elastic DINOv3 ViT."""

    def __init__(self, config: PoaDinov3ViTConfig):
        # not DINOv3ViTEncoder's, which would build every block twice
        super(DINOv3ViTEncoder, self).__init__(config)
        self.layer = nn.ModuleList(PoaDinov3ViTLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()


class PoaDinov3ViTModel(ElasticViTModelMixin, DINOv3ViTModel):
    """An elastic DINOv3 ViT: the full size and, by `sub_network`, every smaller one inside it.

    Images may have any sides that are multiples of the patch.

    Example:
        >>> import torch
        >>> config = PoaDinov3ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, min_hidden_size=16)
        >>> model = PoaDinov3ViTModel(config).eval()
        >>> images = torch.rand(1, 3, 64, 96)
        >>> output = model(images, sub_network="16x1")
        >>> output.pooler_output.shape, output.last_hidden_state.shape  # a class token, 4 registers, 4 x 6 patches
        (torch.Size([1, 16]), torch.Size([1, 29, 16]))
        >>> small = model.extract("16x1")  # a stock model
        >>> type(small).__name__, torch.equal(small(images).pooler_output, output.pooler_output)
        ('DINOv3ViTModel', True)
    """

    config_class = PoaDinov3ViTConfig
    config: PoaDinov3ViTConfig
    _no_split_modules = ["DINOv3ViTEmbeddings", "PoaDinov3ViTLayer"]
    slice_rules = SliceRules(blocks="model.layer.{block}")
    patch_embedding = r"embeddings\.patch_embeddings\."
    stock_class = DINOv3ViTModel

    def __init__(self, config: PoaDinov3ViTConfig):
        # not DINOv3ViTModel's, which would build every block twice
        super(DINOv3ViTModel, self).__init__(config)
        self.embeddings = DINOv3ViTEmbeddings(config)
        self.rope_embeddings = PoaDinov3ViTRopePositionEmbedding(config)
        self.model = PoaDinov3ViTEncoder(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()
