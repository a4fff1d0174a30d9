"""What the elastic ViTs have in common: sub-networks, stochastic depth by subset, tokens before the patches."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..slicing import SlicedModel
from ..sub_network import SubNetwork
from .elastic_model import ElasticModelMixin
from .elastic_vit_config import ElasticViTConfigMixin
from .shared_blocks import shared_outputs
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
        if bool_masked_pos is not None and pixel_values is not None:
            height, width = (side // self.config.patch_size for side in pixel_values.shape[-2:])
            patches = height * width
            if bool_masked_pos.shape != (len(pixel_values), patches):
                raise ValueError(
                    f"bool_masked_pos {tuple(bool_masked_pos.shape)} does not fit these images: give "
                    f"({len(pixel_values)}, {patches})."
                )
            bool_masked_pos = bool_masked_pos.bool()  # stock models differ in the types that they take
        return super().forward(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)

    def outputs_of(
        self, sub_networks: Sequence[SubNetwork | str], pixel_values: Tensor
    ) -> Iterator[tuple[SubNetwork, Any]]:
        """Yield the output of each sub-network for a batch; blocks that several have in common are computed once."""
        config = self.config
        if self.training or config.output_hidden_states or config.output_attentions:
            yield from super().outputs_of(sub_networks, pixel_values)
            return
        sizes = [config.space.resolve(sub_network) for sub_network in sub_networks]

        def model_of(size: SubNetwork) -> tuple[list[nn.Module], Callable[[], Any]]:
            model = self.sliced(size)
            modules = model.plain if isinstance(model, SlicedModel) else model
            blocks = modules.get_submodule(self.slice_rules.blocks.removesuffix(".{block}"))
            return list(blocks.children()), lambda: model(pixel_values)

        yield from shared_outputs(sizes, config.num_hidden_layers, model_of)

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
