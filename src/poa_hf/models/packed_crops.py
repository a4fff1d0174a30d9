"""Passes of a ViT over crops of several resolutions at once: everything but attention sees the tokens of all crops.

A pass over global crops and one over local crops launch as many kernels each. Packed, the rows of all tokens lie one
after the other in one tensor, and only attention is computed for each resolution by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.dinov2.modeling_dinov2 import eager_attention_forward

from ..sub_network import SubNetwork
from .stochastic_depth import Subset, num_kept

if TYPE_CHECKING:
    from .elastic_vit_model import ElasticViTModelMixin as _Model
    from .elastic_vit_model import SubsetDepthMixin as _Layer
else:
    _Layer = _Model = object


class Crops(NamedTuple):
    """Crops of one resolution: their number and the number of tokens of each."""

    images: int
    tokens: int


class PackedLayerMixin(_Layer):
    """A block of the DINO family that takes packed rows too."""

    drop_path_rate: float

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        packed: tuple[Crops, ...] | None = None,
        kept: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the block's output, of the shape of its input.

        Args:
            hidden_states: (B, tokens, D), or the packed rows of crops (rows, D).
            attention_mask: As in the stock block; packed rows have none.
            packed: The crops whose rows are packed.
            kept: Of packed rows, those that stochastic depth keeps in the branches of attention and MLP
                (2, kept rows); None if all are.
            kwargs: Further arguments of the stock block.
        """
        if packed is None:
            return super().forward(hidden_states, attention_mask, **kwargs)

        def attention(rows: Tensor, crops: Sequence[Crops]) -> Tensor:
            return self.layer_scale1(packed_attention(self.attention, self.norm1(rows), crops))

        def mlp(rows: Tensor, crops: Sequence[Crops]) -> Tensor:
            return self.layer_scale2(self.mlp(self.norm2(rows)))

        if kept is None:
            hidden_states = hidden_states + attention(hidden_states, packed)
            return hidden_states + mlp(hidden_states, packed)
        for branch, index in zip((attention, mlp), kept, strict=True):
            hidden_states = add_packed_residual(hidden_states, branch, index, packed, self.drop_path_rate)
        return hidden_states


class PackedModelMixin(_Model):
    """An elastic ViT that computes crops of several resolutions in one pass. It comes before the elastic ViT."""

    def forward(
        self,
        pixel_values: Tensor | Sequence[Tensor] | None = None,
        bool_masked_pos: Tensor | Sequence[Tensor | None] | None = None,
        sub_network: SubNetwork | str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return the features of images.

        Args:
            pixel_values: (B, 3, H, W); or a list of several, of different sides, which are computed in one pass.
            bool_masked_pos: bool (B, patches), the patches that the mask token replaces; for a list of images, a list
                of these, or of None.
            sub_network: The size that computes, or its text or name; None means the full one.
            kwargs: Further arguments of the stock model's `forward`; lists of images take none.

        Returns:
            `last_hidden_state` (B, tokens, D), normalised, the class token first and the patches last;
            `pooler_output` (B, D), the class token. For a list of images, a list of these.
        """
        if pixel_values is None or isinstance(pixel_values, Tensor):
            return super().forward(pixel_values, cast("Tensor | None", bool_masked_pos), sub_network, **kwargs)
        if kwargs:
            raise ValueError(f"Images of several sizes take no further arguments: leave out {', '.join(kwargs)}.")
        model = self.sliced(sub_network)
        if model is not self:
            return model(pixel_values, bool_masked_pos=bool_masked_pos)
        masks = [None] * len(pixel_values) if bool_masked_pos is None else bool_masked_pos
        if isinstance(masks, Tensor) or len(masks) != len(pixel_values):
            raise ValueError(
                f"bool_masked_pos does not fit a list of images of {len(pixel_values)} sizes: give a list of as many, "
                "each a tensor or None."
            )
        return self._packed_outputs(pixel_values, [None if mask is None else mask.bool() for mask in masks])

    def _packed_outputs(
        self, images: Sequence[Tensor], masks: Sequence[Tensor | None]
    ) -> list[BaseModelOutputWithPooling]:
        modules: Any = self  # of the stock model
        embedded = [modules.embeddings(*pair) for pair in zip(images, masks, strict=True)]  # (B, tokens, D) each
        packed = tuple(Crops(*each.shape[:2]) for each in embedded)
        rows = torch.cat([each.flatten(0, 1) for each in embedded])  # (rows, D)
        layers, drop_rate = modules.encoder.layer, modules.config.drop_path_rate
        kept: Any = [None] * len(layers)
        if self.training and drop_rate:
            kept = kept_rows(packed, len(layers), drop_rate, rows.device)
        for layer, of_layer in zip(layers, kept, strict=True):
            rows = layer(rows, packed=packed, kept=of_layer)
        outputs = unpacked(modules.layernorm(rows), packed)
        return [BaseModelOutputWithPooling(each, each[:, 0]) for each in outputs]


def packed_attention(attention: Any, rows: Tensor, crops: Sequence[Crops]) -> Tensor:
    """Return what a stock attention layer gives for packed rows (rows, D), each image attending to itself.

    Args:
        attention: An attention layer of the DINO family.
        rows: (rows, D).
        crops: The crops whose rows they are.
    """
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    projected = [projection(rows).unflatten(-1, (-1, attention.head_dim)) for projection in projections]
    outputs = []
    for heads in zip(*(unpacked(each, crops) for each in projected), strict=True):  # each (B, tokens, heads, head size)
        query, key, value = (each.transpose(1, 2) for each in heads)
        dropout = attention.attention_dropout if attention.training else 0.0
        output, _ = attend(attention, query, key, value, None, dropout=dropout, scaling=attention.scaling)
        outputs.append(output.flatten(0, 1).flatten(1))  # (B * tokens, D)
    return attention.o_proj(torch.cat(outputs))


def unpacked(rows: Tensor, crops: Sequence[Crops]) -> list[Tensor]:
    """Return packed rows (rows, ...) as tokens (B, tokens, ...) of each resolution."""
    counts = [images * tokens for images, tokens in crops]
    return [part.unflatten(0, tuple(each)) for part, each in zip(rows.split(counts), crops, strict=True)]


def add_packed_residual(
    hidden_states: Tensor,
    branch: Callable[[Tensor, Sequence[Crops]], Tensor],
    index: Tensor,
    crops: Sequence[Crops],
    drop_rate: float,
) -> Tensor:
    """Return `add_residual` of the crops of each resolution, for packed rows (rows, D).

    Args:
        hidden_states: The rows of all crops (rows, D).
        branch: Computes the residual of packed rows, given whose rows they are.
        index: The rows that are kept.
        crops: The crops whose rows are packed.
        drop_rate: Share of images that skip the branch.
    """
    kept = [Crops(num_kept(images, drop_rate), tokens) for images, tokens in crops]
    subset = Subset(index, len(hidden_states))
    residual = branch(subset.of(hidden_states), kept).to(hidden_states.dtype)
    scales = [all_of.images / of_kept.images for all_of, of_kept in zip(crops, kept, strict=True)]
    if len(set(scales)) == 1:
        return subset.added(hidden_states, residual, scales[0])
    counts = [images * tokens for images, tokens in kept]
    for rows, part, scale in zip(index.split(counts), residual.split(counts), scales, strict=True):
        hidden_states = Subset(rows, len(hidden_states)).added(hidden_states, part, scale)
    return hidden_states


def kept_rows(crops: Sequence[Crops], num_layers: int, drop_rate: float, device: torch.device) -> Tensor:
    """Draw which rows each branch of each block computes (blocks, 2, kept rows).

    The images are drawn in the order in which separate passes over each resolution draw them, but on the host and for
    all blocks at once, because each draw on a GPU takes several kernels.
    """
    rows, start = [], 0
    for images, tokens in crops:
        kept = num_kept(images, drop_rate)
        drawn = torch.stack([torch.randperm(images)[:kept] for _ in range(2 * num_layers)])  # (2 * blocks, kept)
        if device.type == "cuda":
            drawn = drawn.pin_memory()
        first = drawn.to(device, non_blocking=True) * tokens + start  # the first row of each image
        rows.append((first[..., None] + torch.arange(tokens, device=device)).flatten(1))
        start += images * tokens
    return torch.cat(rows, dim=1).unflatten(0, (num_layers, 2))
