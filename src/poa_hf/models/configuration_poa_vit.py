"""Configuration of the elastic ViT."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import Dinov2Config

from ..elastic import ElasticSpace, SubNetwork
from ..ranges import FINITE, Range, check_ranges
from .elastic_config import (
    BLOCKS,
    SHARED_RANGES,
    SIZE,
    TRANSFORMER_RANGES,
    ElasticConfigMixin,
    Filled,
    Side,
    Whole,
    check_activation,
    check_square,
    check_width,
)


@strict
class PoaViTConfig(ElasticConfigMixin, Dinov2Config):
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
    stock_config_class = Dinov2Config
    has_class_token = True
    shared_fields = tuple(
        "mlp_ratio hidden_act hidden_dropout_prob attention_probs_dropout_prob initializer_range layer_norm_eps "
        "image_size patch_size num_channels qkv_bias layerscale_value use_swiglu_ffn use_mask_token apply_layernorm "
        "reshape_hidden_states".split()
    )
    pretraining_fields = ("drop_path_rate",)
    ranges = {
        **SHARED_RANGES,
        **TRANSFORMER_RANGES,
        **dict.fromkeys(("hidden_size", "num_attention_heads", "min_hidden_size", "hidden_size_step"), SIZE),
        **dict.fromkeys(("num_hidden_layers", "min_num_hidden_layers", "num_hidden_layers_step"), BLOCKS),
        "mlp_ratio": Range(1, 1024),
        "layerscale_value": FINITE,
    }

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

    def __post_init__(self, **kwargs: Any) -> None:
        check_ranges(self, self.ranges)
        check_square(self, "image_size", "patch_size")
        if self.mlp_ratio != int(self.mlp_ratio):
            raise ValueError(f"mlp_ratio must be a whole number, as in stock dinov2, not {self.mlp_ratio}.")
        self.mlp_ratio = int(self.mlp_ratio)  # 4.0 is accepted as 4
        if "head_dim" in kwargs:
            raise ValueError("head_dim cannot be set: the head size is hidden_size / num_attention_heads.")
        check_activation(self)
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}: "
                "change one of them so that every head has the same size."
            )
        if self.hidden_size_step is None:
            self.hidden_size_step = self.head_size
        check_width(self.hidden_size_step, "hidden_size_step", self.head_size, "the head size")
        check_width(self.num_hidden_layers_step, "num_hidden_layers_step", 1, "one block")
        if self.min_hidden_size is None:
            missing_steps = self.hidden_size * 5 // 8 // self.hidden_size_step
            self.min_hidden_size = self.hidden_size - missing_steps * self.hidden_size_step
        if self.min_num_hidden_layers is None:
            missing_steps = self.num_hidden_layers // 2 // self.num_hidden_layers_step
            self.min_num_hidden_layers = self.num_hidden_layers - missing_steps * self.num_hidden_layers_step
        for name, unit, what in (
            ("hidden_size", self.head_size, "the head size"),
            ("num_hidden_layers", 1, "one block"),
        ):
            smallest, full, step = (getattr(self, name_) for name_ in (f"min_{name}", name, f"{name}_step"))
            check_width(smallest, f"min_{name}", unit, what, full, step)
        image, patch = self.image_size, self.patch_size
        if image % patch:
            raise ValueError(
                f"image_size {image} is not a multiple of patch_size {patch}: "
                f"use {image - image % patch or patch} or {image + patch - image % patch}."
            )

    @property
    def head_size(self) -> int:
        """Channels of an attention head, the same in all sizes."""
        return self.hidden_size // self.num_attention_heads

    @property
    def crop_multiple(self) -> int:
        """Side in pixels of a patch, a multiple of which global crops must be."""
        return self.patch_size

    @property
    def patch_grid(self) -> int:
        """Side in pixels of a patch, which masked prediction hides and predicts."""
        return self.patch_size

    @property
    def space(self) -> ElasticSpace:
        """All sizes, among them `small`, `base` and `large`."""
        widths = range(self.min_hidden_size, self.hidden_size + 1, self.hidden_size_step)
        depths = range(self.min_num_hidden_layers, self.num_hidden_layers + 1, self.num_hidden_layers_step)
        # as ViT-S, B and L in the published space: base is three quarters as wide as large and as deep as small
        base_width = min(widths, key=lambda width: abs(width - 0.75 * self.hidden_size))
        named = (
            ("small", SubNetwork(self.min_hidden_size, self.min_num_hidden_layers)),
            ("base", SubNetwork(base_width, self.min_num_hidden_layers)),
            ("large", SubNetwork(self.hidden_size, self.num_hidden_layers)),
        )
        bias = self.sampling_bias
        return ElasticSpace.from_axes(widths, tuple((depth,) for depth in depths), bias, bias, named)

    @property
    def has_position_embeddings(self) -> bool:
        return True

    def _size(self, sub_network: SubNetwork) -> dict[str, Any]:
        return {
            "hidden_size": sub_network.width,
            "num_hidden_layers": sub_network.depths[0],
            "num_attention_heads": sub_network.width // self.head_size,
        }

    def _only_size(self, sub_network: SubNetwork) -> dict[str, Any]:
        return {"min_hidden_size": sub_network.width, "min_num_hidden_layers": sub_network.depths[0]}
