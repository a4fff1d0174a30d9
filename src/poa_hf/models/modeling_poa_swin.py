"""The elastic Swin: stock Swin blocks, whose leading parameters are smaller Swins."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SwinModel, initialization
from transformers.models.swin.modeling_swin import (
    SwinEmbeddings,
    SwinEncoder,
    SwinLayer,
    SwinModelOutput,
    SwinPatchMerging,
    SwinStage,
    window_partition,
    window_reverse,
)

from ..slice_rules import SliceRules
from ..sub_network import SubNetwork
from .configuration_poa_swin import PoaSwinConfig
from .elastic_model import ElasticModelMixin
from .stochastic_depth import add_residual
from .token_grids import mask_of_grid, upsampled_tokens
from .transformer_units import block_units, channel_axes, norms
from .unit_groups import UnitAxis, UnitGroup


class PoaSwinLayer(SwinLayer):
    """A Swin block for crops of any size: the window keeps its size, and calls do not depend on earlier ones.

    Maps that the window does not divide are padded. On maps not larger than the window it is not shifted; a stock block
    would shrink the window for good. Stochastic depth acts on both branches and does not compute the images that it
    drops.
    """

    def __init__(self, config: PoaSwinConfig, dim: int, num_heads: int, shift_size: int, **kwargs: Any):
        super().__init__(config, dim, num_heads=num_heads, shift_size=shift_size, **kwargs)
        self.drop_path_rate = config.drop_path_rate

    def forward(  # type: ignore[override]  # stock Swin's own return type is wrong: it returns these two as well
        self, hidden_states: Tensor, input_dimensions: tuple[int, int], always_partition: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Return the block's output and, where they are computed, its attention weights.

        Args:
            hidden_states: (B, height * width, D).
            input_dimensions: (height, width) of the map.
            always_partition: Whether to shift the windows on small maps too, as `SwinBackbone` asks for.
            kwargs: Further arguments of the attention.
        """
        shifted = self.shift_size > 0 and (always_partition or min(input_dimensions) > self.window_size)
        weights = None

        def attention(kept: Tensor, index: Tensor | None = None) -> Tensor:
            nonlocal weights
            kept, weights = self._window_attention(self.layernorm_before(kept), input_dimensions, shifted, **kwargs)
            return self.dropout(kept)

        def mlp(kept: Tensor, index: Tensor | None = None) -> Tensor:
            return self.dropout(self.mlp(self.layernorm_after(kept)))

        if not self.training or self.drop_path_rate == 0:
            hidden_states = hidden_states + attention(hidden_states)
            return mlp(hidden_states) + hidden_states, weights
        hidden_states = add_residual(hidden_states, attention, self.drop_path_rate)
        return add_residual(hidden_states, mlp, self.drop_path_rate), weights

    def _window_attention(
        self, hidden_states: Tensor, size: tuple[int, int], shifted: bool, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Attention within the windows of a (height, width) map, in the order of stock Swin's operations."""
        (height, width), window = size, self.window_size
        batch_size, tokens, channels = hidden_states.shape
        maps = hidden_states.view(batch_size, height, width, channels)
        maps, _ = self.maybe_pad(maps, height, width)  # (B, padded height, padded width, D)
        _, padded_height, padded_width, _ = maps.shape
        mask = None
        if shifted:
            maps = self.cyclic_shift(maps)
            mask = self.get_attn_mask(padded_height, padded_width, maps.dtype, maps.device)
        windows = window_partition(maps, window).view(-1, window * window, channels)  # (B * windows, window^2, D)
        output, weights = self.attention(windows, mask, **kwargs)
        output = window_reverse(output.view(-1, window, window, channels), window, padded_height, padded_width)
        if shifted:
            output = self.cyclic_shift(output, reverse=True)
        return output[:, :height, :width].reshape(batch_size, tokens, channels), weights


def _called(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


class PoaSwinStage(SwinStage):
    """A stage that is checkpointed block by block; stock stages are also checkpointed as a whole, at twice the cost."""

    _gradient_checkpointing_func = property(lambda self: _called, lambda self, value: None)

    def __init__(self, config: PoaSwinConfig, stage: int, grid_size: tuple[int, int]):
        # not SwinStage's, which would build stock blocks
        super(SwinStage, self).__init__()
        self.config = config
        dim = config.embed_dim * 2**stage
        self.blocks = nn.ModuleList(
            PoaSwinLayer(
                config,
                dim,
                num_heads=config.num_heads[stage],
                shift_size=0 if block % 2 == 0 else config.window_size // 2,
                input_resolution=(grid_size[0] // 2**stage, grid_size[1] // 2**stage),
            )
            for block in range(config.depths[stage])
        )
        self.downsample = SwinPatchMerging(dim) if stage < len(config.depths) - 1 else None


class PoaSwinEncoder(SwinEncoder):
    """The stages of an elastic Swin."""

    def __init__(self, config: PoaSwinConfig, grid_size: tuple[int, int]):
        # not SwinEncoder's, which would build every block twice
        super(SwinEncoder, self).__init__(config)
        self.num_layers = len(config.depths)
        self.layers = nn.ModuleList(PoaSwinStage(config, stage, grid_size) for stage in range(self.num_layers))
        self.post_init()


class PoaSwinModel(ElasticModelMixin, SwinModel):
    """An elastic Swin: the full size and, by `sub_network`, every smaller one inside it."""

    config_class = PoaSwinConfig
    config: PoaSwinConfig
    _no_split_modules = ["SwinEmbeddings", "PoaSwinStage"]
    slice_rules = SliceRules(
        blocks="encoder.layers.{stage}.blocks.{block}", grouped={r"downsample\.(norm|reduction)\.": 4}
    )
    patch_embedding = r"embeddings\.(patch_embeddings|norm)\."
    stock_class = SwinModel

    def __init__(self, config: PoaSwinConfig):
        # not SwinModel's, which would build every block twice
        super(SwinModel, self).__init__(config)
        self.num_layers = len(config.depths)
        self.num_features = config.hidden_size
        self.embeddings = SwinEmbeddings(config, use_mask_token=True)
        self.encoder = PoaSwinEncoder(config, self.embeddings.patch_grid)
        self.layernorm = nn.LayerNorm(self.num_features, eps=config.layer_norm_eps)
        self.pooler = nn.AdaptiveAvgPool1d(1)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SwinEmbeddings) and module.mask_token is not None:
            # As in SimMIM. Stock Swin's zeros fill whole windows here and pass one LayerNorm after another at a slope
            # of 1 / sqrt(eps), which makes gradients of 1e8 and more before the first step.
            initialization.trunc_normal_(module.mask_token, std=self.config.initializer_range)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        sub_network: SubNetwork | str | None = None,
        **kwargs: Any,
    ) -> SwinModelOutput:
        """Return the features of images (shapes for four stages and patches of 4 pixels).

        Args:
            pixel_values: (B, 3, H, W).
            bool_masked_pos: bool (B, H/16 * W/16), squares of `config.patch_grid` pixels, in each of which the mask
                token replaces 4 x 4 patches.
            sub_network: The size that computes, or its text or name; None means the full one.
            kwargs: Further arguments of `SwinModel.forward`.

        Returns:
            `last_hidden_state` (B, H/32 * W/32, D), normalised, with D eight times the width; `pooler_output` (B, D),
            its mean.
        """
        model = self.sliced(sub_network)
        if model is not self:
            return model(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)
        if bool_masked_pos is not None and pixel_values is not None:
            height, width = (-(-side // self.config.patch_size) for side in pixel_values.shape[-2:])
            squares = self.config.patch_grid // self.config.patch_size
            bool_masked_pos = mask_of_grid(bool_masked_pos, height, width, squares).flatten(1)  # (B, H/4 * W/4)
        if self.config.use_absolute_embeddings:
            kwargs.setdefault("interpolate_pos_encoding", True)  # stock Swin only takes images of one size
        return super().forward(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)

    def unit_groups(self) -> list[UnitGroup]:
        """Return the channels of each stage, and the heads and hidden units of each block."""
        groups: list[UnitGroup] = []
        for stage in range(self.num_layers):
            groups.append(self._channels(stage))
            for index in range(self.config.depths[stage]):
                block = f"encoder.layers.{stage}.blocks.{index}"
                table = rf"{re.escape(block)}\.attention\.relative_position_bias\.relative_position_bias_table"
                groups += block_units(self, block, self.config.num_heads[stage], UnitAxis(table, 1, entries=1))
        return groups

    def _channels(self, stage: int) -> UnitGroup:
        """The channels of a stage: made by the embeddings or the patch merging before it, read by the one after it."""
        blocks, is_last = rf"encoder\.layers\.{stage}\.blocks\.\d+", stage == self.num_layers - 1
        merging = f"encoder.layers.{stage}.downsample"
        if stage == 0:
            made_by: tuple[UnitAxis, ...] = (
                UnitAxis(r"embeddings\.(mask_token|position_embeddings)", -1),
                UnitAxis(r"embeddings\.(patch_embeddings\.projection|norm)\.(weight|bias)", 0),
            )
        else:
            made_by = (UnitAxis(rf"encoder\.layers\.{stage - 1}\.downsample\.reduction\.weight", 0),)
        if is_last:
            read_by: tuple[UnitAxis, ...] = (UnitAxis(r"layernorm\.(weight|bias)", 0),)
        else:
            read_by = (
                UnitAxis(rf"{re.escape(merging)}\.norm\.(weight|bias)", 0, copies=4),
                UnitAxis(rf"{re.escape(merging)}\.reduction\.weight", 1, copies=4),
            )
        return UnitGroup(
            f"encoder.layers.{stage}.channels",
            self.config.embed_dim * 2**stage,
            (*made_by, *channel_axes(blocks), *read_by),
            outputs_of=(*norms(self, blocks), "layernorm" if is_last else f"{merging}.norm"),
            are_features=is_last,
        )

    def image_tokens(self, output: SwinModelOutput) -> tuple[Tensor, Tensor]:
        """Return what the projection heads read of square images.

        Returns:
            The images' features (B, D), and the map's tokens (B, 4 * tokens, D), each four times: once for each square
            of the masks' grid.

        Raises:
            ValueError: If the images are not square.
        """
        images, tokens = output.pooler_output, output.last_hidden_state  # (B, D), (B, tokens, D)
        assert images is not None and tokens is not None  # ModelOutput's fields are optional
        side = round(tokens.shape[1] ** 0.5)
        if side * side != tokens.shape[1]:
            raise ValueError(f"{tokens.shape[1]} tokens are not a square map: pre-training takes square crops.")
        return images, upsampled_tokens(tokens.transpose(1, 2).unflatten(2, (side, side)))
