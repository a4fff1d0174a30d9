"""Configuration of the elastic DINOv2 with registers."""

from huggingface_hub.dataclasses import strict
from transformers import Dinov2WithRegistersConfig

from ..ranges import Range
from .configuration_poa_vit import DINOV2_FIELDS, ElasticDinov2ConfigMixin
from .elastic_config import Filled, Side, Whole


@strict
class PoaDinov2RegistersConfig(ElasticDinov2ConfigMixin, Dinov2WithRegistersConfig):
    """Configuration of an elastic DINOv2 with registers, which holds smaller ones.

    The full size is given in the fields of `Dinov2WithRegistersConfig`, the smallest size and the steps in new ones.
    The defaults span the sizes of the published S, B and L (arXiv 2309.16588): widths 384 to 1024 in steps of one head
    (64) and depths 12 to 24, which makes 143 sizes. All sizes have the same number of registers and the same head size
    (`hidden_size / num_attention_heads`).

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
        num_register_tokens: Number of registers, tokens between the class token and the patches that belong to no
            part of the image and that no loss reads.
        layer_norm_eps: Epsilon that the layer normalisations add to the variance.
        initializer_range: Standard deviation of the initial weights.
        apply_layernorm: Whether an extracted backbone (`Dinov2WithRegistersBackbone`) normalises its feature maps.
        reshape_hidden_states: Whether an extracted backbone returns feature maps (B, D, h, w) instead of tokens.

    Raises:
        ValueError: If a width is not a multiple of the head size, a step does not lead from the smallest to the full
            size, the smallest is larger than the full size, the patch does not divide the image, or stock
            `dinov2_with_registers` could not hold an extracted size (`head_dim`, a fractional `mlp_ratio`, images that
            are not square).

    Example:
        >>> config = PoaDinov2RegistersConfig(hidden_size=128, num_hidden_layers=4, num_attention_heads=4)
        >>> [str(size) for size in config.space][:4]
        ['64x2', '64x3', '64x4', '96x2']
        >>> config.stock_config(config.space.smallest).model_type
        'dinov2_with_registers'
    """

    model_type = "poa_dinov2_with_registers"
    family = "ViT with registers"
    stock_config_class = Dinov2WithRegistersConfig
    shared_fields = (*DINOV2_FIELDS, "num_register_tokens")
    ranges = {**ElasticDinov2ConfigMixin.ranges, "num_register_tokens": Range(0, 1024, whole=True)}

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
    def num_prefix_tokens(self) -> int:
        return 1 + self.num_register_tokens
