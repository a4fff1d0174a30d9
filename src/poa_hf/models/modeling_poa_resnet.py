"""The elastic GroupNorm ResNet: bottleneck blocks, whose leading middle channels are smaller ResNets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention
from transformers.utils.generic import can_return_tuple

from ..elastic import SubNetwork
from ..slicing import SliceRules
from .configuration_poa_resnet import PoaResNetConfig
from .elastic_model import ElasticModelMixin
from .modeling_gn_resnet import GnResNetModel
from .token_grids import mask_of_grid, upsampled_tokens


class PoaResNetModel(ElasticModelMixin, GnResNetModel):
    """The full-size ResNet and, by `sub_network`, every smaller one inside it.

    Shapes, for four stages: `pixel_values` (B, 3, H, W); `bool_masked_pos` (B, H/16 * W/16), squares of 16 pixels
    (`config.patch_grid`), under which the stem's output is replaced by the mask token; `last_hidden_state`
    (B, 2048, H/32, W/32), as wide in every size; `pooler_output` (B, 2048), its mean.
    """

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
        **kwargs,
    ) -> BaseModelOutputWithPoolingAndNoAttention:
        model = self.sliced(sub_network)
        if model is not self:
            return model(pixel_values, bool_masked_pos, output_hidden_states=output_hidden_states, return_dict=True)
        embeddings = self.embedder(pixel_values)
        if bool_masked_pos is not None:
            height, width = embeddings.shape[-2:]
            mask = mask_of_grid(bool_masked_pos, height, width, self.config.patch_grid // 4)
            embeddings = torch.where(mask[:, None], self.mask_token.to(embeddings.dtype), embeddings)
        return self.encode(embeddings, output_hidden_states)

    @staticmethod
    def image_tokens(output: BaseModelOutputWithPoolingAndNoAttention) -> tuple[Tensor, Tensor]:
        """What the heads read: the image's feature (B, D), and the map's positions (B, 4 * positions, D), each four
        times, once for each square of the masks' grid."""
        return output.pooler_output, upsampled_tokens(output.last_hidden_state)
