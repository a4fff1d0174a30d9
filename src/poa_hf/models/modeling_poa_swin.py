"""The elastic Swin: stock Swin blocks, whose leading parameters are smaller Swins."""

from __future__ import annotations

from dataclasses import replace

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

from ..elastic import SubNetwork
from ..slicing import SliceRules
from .configuration_poa_swin import PoaSwinConfig
from .elastic_model import ElasticModelMixin
from .stochastic_depth import add_residual
from .token_grids import mask_of_grid, upsampled_tokens


class PoaSwinLayer(SwinLayer):
    """A Swin block for crops of any size: the window keeps its size, and nothing is remembered between calls.

    Maps that the window does not divide are padded; on maps no larger than the window it is not shifted (where a stock
    block would shrink the window for good). Stochastic depth acts on both branches and leaves dropped images out.
    """

    def __init__(self, config: PoaSwinConfig, dim: int, num_heads: int, shift_size: int, **kwargs):
        super().__init__(config, dim, num_heads=num_heads, shift_size=shift_size, **kwargs)
        self.drop_path_rate = config.drop_path_rate

    def forward(
        self, hidden_states: Tensor, input_dimensions: tuple[int, int], always_partition: bool = False, **kwargs
    ) -> tuple[Tensor, Tensor]:
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
        self, hidden_states: Tensor, size: tuple[int, int], shifted: bool, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Attention within windows of the (height, width) map, in the order of stock Swin's operations."""
        (height, width), window = size, self.window_size
        batch_size, tokens, channels = hidden_states.shape
        hidden_states, _ = self.maybe_pad(hidden_states.view(batch_size, height, width, channels), height, width)
        _, padded_height, padded_width, _ = hidden_states.shape
        mask = None
        if shifted:
            hidden_states = self.cyclic_shift(hidden_states)
            mask = self.get_attn_mask(padded_height, padded_width, hidden_states.dtype, hidden_states.device)
        windows = window_partition(hidden_states, window).view(-1, window * window, channels)
        output, weights = self.attention(windows, mask, **kwargs)
        output = window_reverse(output.view(-1, window, window, channels), window, padded_height, padded_width)
        if shifted:
            output = self.cyclic_shift(output, reverse=True)
        return output[:, :height, :width].reshape(batch_size, tokens, channels), weights


class PoaSwinStage(nn.Module):
    """A stock stage but for activation checkpointing, which would recompute it as a whole and its blocks once more."""

    forward = SwinStage.forward.__wrapped__  # what is wrapped around it is that checkpointing
    get_reshaped_hidden_states = SwinStage.get_reshaped_hidden_states

    def __init__(self, config: PoaSwinConfig, stage: int, grid_size: tuple[int, int]):
        super().__init__()
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
    _can_record_outputs = {
        name: replace(recorder, target_class=PoaSwinStage) for name, recorder in SwinEncoder._can_record_outputs.items()
    }

    def __init__(self, config: PoaSwinConfig, grid_size: tuple[int, int]):
        super(SwinEncoder, self).__init__(config)
        self.num_layers = len(config.depths)
        self.layers = nn.ModuleList(PoaSwinStage(config, stage, grid_size) for stage in range(self.num_layers))
        self.post_init()


class PoaSwinModel(ElasticModelMixin, SwinModel):
    """The full-size Swin and, by `sub_network`, every smaller one inside it.

    Shapes, for the published patch size and four stages: `pixel_values` (B, 3, H, W); `bool_masked_pos`
    (B, H/16 * W/16), squares of 16 pixels (`config.patch_grid`), of which each hides 4 x 4 patches; `last_hidden_state`
    (B, H/32 * W/32, 8 * width), normalised; `pooler_output` (B, 8 * width), its mean.
    """

    config_class = PoaSwinConfig
    config: PoaSwinConfig
    _no_split_modules = ["SwinEmbeddings", "PoaSwinStage"]
    slice_rules = SliceRules(
        blocks="encoder.layers.{stage}.blocks.{block}", grouped={r"downsample\.(norm|reduction)\.": 4}
    )
    patch_embedding = r"embeddings\.(patch_embeddings|norm)\."
    stock_class = SwinModel

    def __init__(self, config: PoaSwinConfig):
        # not SwinModel's own, which would build every block twice
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
        if isinstance(module, SwinEmbeddings):
            # As SimMIM. Stock Swin's zeros, which fill whole windows here, would go through one LayerNorm after another
            # at a slope of 1 / sqrt(eps): gradients of 1e8 and more before the first step.
            initialization.trunc_normal_(module.mask_token, std=self.config.initializer_range)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        sub_network: SubNetwork | str | None = None,
        **kwargs,
    ) -> SwinModelOutput:
        model = self.sliced(sub_network)
        if model is not self:
            return model(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)
        if bool_masked_pos is not None:
            height, width = (-(-side // self.config.patch_size) for side in pixel_values.shape[-2:])
            squares = self.config.patch_grid // self.config.patch_size
            bool_masked_pos = mask_of_grid(bool_masked_pos, height, width, squares).flatten(1)
        if self.config.use_absolute_embeddings:
            kwargs.setdefault("interpolate_pos_encoding", True)  # stock Swin takes images of one size alone
        return super().forward(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)

    @staticmethod
    def image_tokens(output: SwinModelOutput) -> tuple[Tensor, Tensor]:
        """What the heads read: the image's feature (B, D), and of square images (B, 4 * tokens, D), each token four
        times, once for each square of the masks' grid. ValueError for images that are not square."""
        tokens = output.last_hidden_state
        side = round(tokens.shape[1] ** 0.5)
        if side * side != tokens.shape[1]:
            raise ValueError(f"{tokens.shape[1]} tokens are no square map: pre-training takes square crops.")
        return output.pooler_output, upsampled_tokens(tokens.transpose(1, 2).unflatten(2, (side, side)))
