"""What the elastic ViTs have in common: sub-networks, stochastic depth by subset, tokens before the patches."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..elastic import SubNetwork
from .elastic_model import ElasticModelMixin
from .elastic_vit_config import ElasticViTConfigMixin
from .stochastic_depth import add_residual
from .transformer_units import block_units, channel_axes, norms
from .unit_groups import UnitAxis, UnitGroup

if TYPE_CHECKING:
    from transformers.modeling_layers import GradientCheckpointingLayer as _Layer
else:
    _Layer = object


class SubsetDepthMixin(_Layer):
    """A block of a ViT whose stochastic depth does not compute the images that it drops.

    It comes before a stock block of the DINO family. Its class's `__init__` sets `drop_path_rate`.
    """

    drop_path_rate: float
    if TYPE_CHECKING:  # modules of the stock block, each a class of its own
        norm1: Any
        attention: Any
        layer_scale1: Any
        norm2: Any
        mlp: Any
        layer_scale2: Any

    def __init__(self, config: Any):
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


class ElasticViTModelMixin(ElasticModelMixin):
    """An elastic ViT whose tokens are a class token, registers if it has any, and the patches."""

    config: ElasticViTConfigMixin

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
            kwargs: Further arguments of the stock model's `forward`.

        Returns:
            `last_hidden_state` (B, tokens, D), normalised, the class token first and the patches last;
            `pooler_output` (B, D), the class token.
        """
        model = self.sliced(sub_network)
        if model is not self:
            return model(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)
        if bool_masked_pos is not None:
            bool_masked_pos = bool_masked_pos.bool()  # stock models differ in the types that they take
        return super().forward(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)

    def unit_groups(self) -> list[UnitGroup]:
        """Return the channels of all blocks as one group, and the heads and hidden units of each block."""
        blocks = re.escape(self.slice_rules.blocks).replace(r"\{block\}", r"\d+")
        (last_norm,) = (name for name, _ in self.named_children() if name in ("layernorm", "norm"))
        axes = (
            UnitAxis(r"embeddings\.(cls_token|mask_token|register_tokens|position_embeddings)", -1),
            UnitAxis(r"embeddings\.patch_embeddings\.(projection\.)?(weight|bias)", 0),
            *channel_axes(blocks),
            UnitAxis(rf"{last_norm}\.(weight|bias)", 0),
        )
        read = (*norms(self, blocks), last_norm)
        groups = [UnitGroup("channels", self.config.hidden_size, axes, outputs_of=read, are_features=True)]
        for block in self.slice_rules.block_names(self):
            groups += block_units(self, block, self.config.num_attention_heads)
        return groups

    def image_tokens(self, output: BaseModelOutputWithPooling) -> tuple[Tensor, Tensor]:
        """Return what the projection heads read: the images' features (B, D) and their patches' (B, patches, D)."""
        images, tokens = output.pooler_output, output.last_hidden_state
        assert images is not None and tokens is not None  # ModelOutput's fields are optional
        return images, tokens[:, self.config.num_prefix_tokens :]
