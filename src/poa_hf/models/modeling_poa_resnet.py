"""The elastic GroupNorm ResNet: bottleneck blocks, whose leading middle channels are smaller ResNets."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention
from transformers.utils.generic import can_return_tuple

from ..slice_rules import SliceRules
from ..sub_network import SubNetwork
from .configuration_poa_resnet import PoaResNetConfig
from .elastic_model import ElasticModelMixin
from .modeling_gn_resnet import GnResNetModel
from .token_grids import mask_of_grid, upsampled_tokens
from .unit_groups import UnitAxis, UnitGroup


class PoaResNetModel(ElasticModelMixin, GnResNetModel):
    """An elastic GroupNorm ResNet: the full size and, by `sub_network`, every smaller one inside it."""

    config_class = PoaResNetConfig
    config: PoaResNetConfig
    slice_rules = SliceRules(blocks="encoder.stages.{stage}.layers.{block}")
    decayed_vectors = r"shortcut\.normalization\.weight"  # as in the authors' runs
    stock_class = GnResNetModel

    def __init__(self, config: PoaResNetConfig):
        super().__init__(config)
        self.mask_token = nn.Parameter(torch.zeros(1, config.embedding_size, 1, 1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PoaResNetModel):
            initialization.zeros_(module.mask_token)

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        sub_network: SubNetwork | str | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        """Return the features of images (shapes for four stages).

        Args:
            pixel_values: (B, 3, H, W).
            bool_masked_pos: bool (B, H/16 * W/16), squares of `config.patch_grid` pixels, under which the mask token
                replaces the stem's output.
            sub_network: The size that computes, or its text or name; None means the full one.
            output_hidden_states: Whether to return the output of the stem and of every stage.
            kwargs: Ignored.

        Returns:
            `last_hidden_state` (B, D, H/32, W/32), with the same D in all sizes; `pooler_output` (B, D), its mean.
        """
        model = self.sliced(sub_network)
        if model is not self:
            return model(pixel_values, bool_masked_pos, output_hidden_states=output_hidden_states, return_dict=True)
        embeddings = self.embedder(pixel_values)  # (B, embedding_size, H/4, W/4)
        if bool_masked_pos is not None:
            height, width = embeddings.shape[-2:]
            mask = mask_of_grid(bool_masked_pos, height, width, self.config.patch_grid // 4)
            embeddings = torch.where(mask[:, None], self.mask_token.to(embeddings.dtype), embeddings)
        return self.encode(embeddings, output_hidden_states)

    def unit_groups(self) -> list[UnitGroup]:
        """Return the middle channels of each block, behind its first and behind its second convolution.

        Channels that GroupNorm normalises together stay together. The stem and the blocks' outputs have one size only.
        """
        groups = []
        for block in self.slice_rules.block_names(self):
            width = self.config.middle_widths[int(block.split(".")[2])]
            for made, read in ((0, 1), (1, 2)):
                maker, reader = (f"{block}.layer.{place}" for place in (made, read))
                axes = (
                    UnitAxis(rf"{re.escape(maker)}\.convolution\.weight", 0),
                    UnitAxis(rf"{re.escape(maker)}\.normalization\.(weight|bias)", 0),
                    UnitAxis(rf"{re.escape(reader)}\.convolution\.weight", 1),
                )
                groups.append(
                    UnitGroup(
                        f"{maker}.channels",
                        width,
                        axes,
                        inputs_of=(f"{reader}.convolution",),
                        together=width // self.config.num_groups,
                    )
                )
        return groups

    def image_tokens(self, output: BaseModelOutputWithPoolingAndNoAttention) -> tuple[Tensor, Tensor]:
        """Return what the projection heads read.

        Returns:
            The images' features (B, D), and the map's positions (B, 4 * positions, D), each four times: once for each
            square of the masks' grid.
        """
        images, maps = output.pooler_output, output.last_hidden_state  # (B, D), (B, D, h, w)
        assert images is not None and maps is not None  # ModelOutput's fields are optional
        return images, upsampled_tokens(maps)
