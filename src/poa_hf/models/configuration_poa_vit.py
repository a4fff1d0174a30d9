"""Configuration of the elastic ViT."""

from typing import TYPE_CHECKING

from huggingface_hub.dataclasses import strict
from transformers import Dinov2Config

from ..ranges import FINITE, Range
from .elastic_config import TRANSFORMER_RANGES, Filled, Side, Whole
from .elastic_vit_config import VIT_RANGES, ElasticViTConfigMixin

# the fields of DINOv2 and of DINOv2 with registers that all sizes share
DINOV2_FIELDS = tuple(
    "mlp_ratio hidden_act hidden_dropout_prob attention_probs_dropout_prob initializer_range layer_norm_eps "
    "image_size patch_size num_channels qkv_bias layerscale_value use_swiglu_ffn apply_layernorm "
    "reshape_hidden_states".split()
)


class ElasticDinov2ConfigMixin(ElasticViTConfigMixin):
    """What the elastic DINOv2 has in common with the one with registers."""

    shared_fields = DINOV2_FIELDS
    packs_crops = True
    pretraining_fields = ("drop_path_rate",)
    ranges = {
        **VIT_RANGES,
        **TRANSFORMER_RANGES,
        "mlp_ratio": Range(1, 1024),
        "layerscale_value": FINITE,
    }

    if TYPE_CHECKING:
        mlp_ratio: Whole

    def _check_fields(self) -> None:
        super()._check_fields()
        if self.mlp_ratio != int(self.mlp_ratio):
            raise ValueError(f"mlp_ratio must be a whole number, as in stock dinov2, not {self.mlp_ratio}.")
        self.mlp_ratio = int(self.mlp_ratio)  # 4.0 is accepted as 4

    @property
    def has_position_embeddings(self) -> bool:
        return True


@strict
class PoaViTConfig(ElasticDinov2ConfigMixin, Dinov2Config):
    """Configuration of an elastic ViT, a DINOv2 that holds smaller ones.

    The full size is given in the fields of `Dinov2Config`, the smallest size and the steps in new ones. The defaults
    are the published ViT-L (arXiv 2408.01031): widths 384 to 1024 in steps of one head (64) and depths 12 to 24, which
    makes 143 sizes. The head size (`hidden_size / num_attention_heads`) is the same in all sizes.

    Args:
        hidden_size: Full width.
        num_hidden_layers: Full depth.
        num_attention_heads: Number of heads at full width.
        min_hidden_size: Smallest width. None means 3/8 of `hidden_size` (as published), rounded up to a step.
        min_num_hidden_layers: Smallest depth. None means half of `num_hidden_layers`, rounded up to a step.
        hidden_size_step: Distance between widths. None means the head size.
        num_hidden_layers_step: Distance between depths.
        sampling_bias: How much more often the smallest width (and the smallest depth) is trained than the largest.
        num_candidates: How many sizes are trained, evenly spread, the smallest and the full one among them (the paper
            gains by 16 of 143). The others are extracted as well. None trains all.
        image_size: Side of the images in pixels, which sets the grid of position embeddings.
        patch_size: Side of the patches in pixels.
        num_channels: Channels of the images.
        mlp_ratio: Width of the MLPs' hidden layers over the width, a whole number.
        hidden_act: Activation of the MLPs, by its name in transformers.
        use_swiglu_ffn: Whether the MLPs are gated (SwiGLU).
        qkv_bias: Whether queries, keys and values have biases.
        layerscale_value: Initial value of LayerScale.
        drop_path_rate: Stochastic depth in training: the share of images that skip a branch of a block. Extracted
            models have 0.
        hidden_dropout_prob: Dropout after the linear layers, in all sizes.
        attention_probs_dropout_prob: Dropout of the attention weights, in all sizes.
        use_mask_token: Whether there is a mask token, without which the model cannot be pre-trained.
        layer_norm_eps: Epsilon that the layer normalisations add to the variance.
        initializer_range: Standard deviation of the initial weights.
        apply_layernorm: Whether an extracted backbone (`Dinov2Backbone`) normalises its feature maps.
        reshape_hidden_states: Whether an extracted backbone returns feature maps (B, D, h, w) instead of tokens.

    Raises:
        ValueError: If a width is not a multiple of the head size, a step does not lead from the smallest to the full
            size, the smallest is larger than the full size, the patch does not divide the image, or stock `dinov2`
            could not hold an extracted size (`head_dim`, a fractional `mlp_ratio`, images that are not square).

    Example:
        >>> config = PoaViTConfig(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, min_hidden_size=64)
        >>> [str(size) for size in config.space][:4]
        ['64x2', '64x3', '64x4', '96x2']
        >>> config.stock_config(config.space.smallest).model_type
        'dinov2'
    """

    model_type = "poa_vit"
    family = "ViT"
    stock_config_class = Dinov2Config
    shared_fields = (*DINOV2_FIELDS, "use_mask_token")

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    mlp_ratio: Whole = 4
    image_size: Side = 224
    patch_size: Side = 16
    layerscale_value: float = 1e-5
    drop_path_rate: float | int = 0.2

    min_hidden_size: Filled = None  # type: ignore[assignment]
    min_num_hidden_layers: Filled = None  # type: ignore[assignment]
    hidden_size_step: Filled = None  # type: ignore[assignment]
    num_hidden_layers_step: int = 1
    sampling_bias: int | float = 3
    num_candidates: int | None = None

    @property
    def has_mask_token(self) -> bool:
        return self.use_mask_token
