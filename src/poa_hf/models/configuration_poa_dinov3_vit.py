"""Configuration of the elastic DINOv3 ViT."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import DINOv3ViTConfig

from ..ranges import FINITE, NOT_NEGATIVE, POSITIVE, SHARE_BELOW_1, Range
from ..sub_network import SubNetwork
from .elastic_config import SIZE, Filled, Side
from .elastic_vit_config import VIT_RANGES, ElasticViTConfigMixin

# what positions are multiplied by in training is drawn from 1 / value to value
_FACTOR = Range(1, 1000)
# taken as whole numbers too, but by the stock configuration as float only
_FLOATS = ("layerscale_value", "rope_theta", "pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")


@strict
class PoaDinov3ViTConfig(ElasticViTConfigMixin, DINOv3ViTConfig):
    """Configuration of an elastic DINOv3 ViT: register tokens, rotary positions and, if asked for, gated MLPs.

    The full size is given in the fields of `DINOv3ViTConfig`, the smallest size and the steps in new ones. The defaults
    are DINOv3's ViT-L with ViT-S as the smallest size: widths 384 to 1024 in steps of one head (64) and depths 12 to
    24, which makes 143 sizes. The head size (`hidden_size / num_attention_heads`) is the same in all sizes, and so are
    the frequencies of the positions, which depend on nothing else.

    The MLPs of all sizes have the same ratio of hidden channels to width: a size of width D has
    `D * intermediate_size // hidden_size` of them, rounded down to a whole number.

    Args:
        hidden_size: Full width.
        num_hidden_layers: Full depth.
        num_attention_heads: Number of heads at full width.
        intermediate_size: Width of the MLPs' hidden layers at full width. None means four times `hidden_size`, as in
            all published sizes but the 7B one.
        min_hidden_size: Smallest width. None means 3/8 of `hidden_size`, rounded up to a step.
        min_num_hidden_layers: Smallest depth. None means half of `num_hidden_layers`, rounded up to a step.
        hidden_size_step: Distance between widths. None means the head size.
        num_hidden_layers_step: Distance between depths.
        sampling_bias: How much more often the smallest width (and the smallest depth) is trained than the largest.
        num_candidates: How many sizes are trained, evenly spread, the smallest and the full one among them (the paper
            gains by 16 of 143). The others are extracted as well. None trains all.
        image_size: Side of the images in pixels. Positions are computed for each image, whatever its size.
        patch_size: Side of the patches in pixels.
        num_channels: Channels of the images.
        num_register_tokens: Number of register tokens, 4 in all published sizes.
        hidden_act: Activation of the MLPs, by its name in transformers; published gated MLPs have `silu`.
        use_gated_mlp: Whether the MLPs are gated (SwiGLU), as in the published S+, H+ and 7B.
        query_bias: Whether queries have biases.
        key_bias: Whether keys have biases; those of published sizes have none.
        value_bias: Whether values have biases.
        proj_bias: Whether the attention's output projection has a bias.
        mlp_bias: Whether the MLPs' layers have biases.
        layerscale_value: Initial value of LayerScale.
        rope_theta: Base period of the rotary positions.
        pos_embed_shift: In training, the students' positions are shifted by up to this much; images span -1 to 1.
        pos_embed_jitter: In training, the students' rows and columns are stretched by different factors between the
            inverse of this and itself.
        pos_embed_rescale: In training, the students' positions are all multiplied by one factor between the inverse of
            this and itself.
        drop_path_rate: Stochastic depth in training: the share of images that skip a branch of a block. Extracted
            models have 0.
        attention_dropout: Dropout of the attention weights, in all sizes.
        layer_norm_eps: Epsilon that the layer normalisations add to the variance.
        initializer_range: Standard deviation of the initial weights.
        apply_layernorm: Whether an extracted backbone (`DINOv3ViTBackbone`) normalises its feature maps.
        reshape_hidden_states: Whether an extracted backbone returns feature maps (B, D, h, w) instead of tokens.

    Raises:
        ValueError: If a width is not a multiple of the head size, the head size is not a multiple of 4, a step does not
            lead from the smallest to the full size, the smallest is larger than the full size, or the patch does not
            divide the image.

    Example:
        >>> config = PoaDinov3ViTConfig(hidden_size=128, num_hidden_layers=4, num_attention_heads=4)
        >>> [str(size) for size in config.space][:4]
        ['64x2', '64x3', '64x4', '96x2']
        >>> small = config.stock_config(config.space.smallest)
        >>> small.model_type, small.intermediate_size
        ('dinov3_vit', 256)
    """

    model_type = "poa_dinov3_vit"
    family = "DINOv3 ViT"
    stock_config_class = DINOv3ViTConfig
    shared_fields = tuple(
        "patch_size hidden_act attention_dropout initializer_range layer_norm_eps rope_theta image_size num_channels "
        "query_bias key_bias value_bias proj_bias mlp_bias layerscale_value use_gated_mlp num_register_tokens "
        "pos_embed_shift pos_embed_jitter pos_embed_rescale apply_layernorm reshape_hidden_states".split()
    )
    pretraining_fields = ("drop_path_rate",)
    ranges = {
        **VIT_RANGES,
        "intermediate_size": SIZE,
        "num_register_tokens": Range(0, 1024, whole=True),
        "attention_dropout": SHARE_BELOW_1,
        "drop_path_rate": SHARE_BELOW_1,
        "initializer_range": NOT_NEGATIVE,
        "layerscale_value": FINITE,
        "rope_theta": POSITIVE,
        "pos_embed_shift": Range(0, 1000),
        "pos_embed_jitter": _FACTOR,
        "pos_embed_rescale": _FACTOR,
    }

    hidden_size: int = 1024
    intermediate_size: Filled = None  # type: ignore[assignment]
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: Side = 224
    patch_size: Side = 16
    num_register_tokens: int = 4
    layerscale_value: float | int = 1e-5
    rope_theta: float | int = 100.0
    pos_embed_shift: float | int | None = None
    pos_embed_jitter: float | int | None = None
    pos_embed_rescale: float | int | None = 2.0
    drop_path_rate: float | int = 0.2

    min_hidden_size: Filled = None  # type: ignore[assignment]
    min_num_hidden_layers: Filled = None  # type: ignore[assignment]
    hidden_size_step: Filled = None  # type: ignore[assignment]
    num_hidden_layers_step: int = 1
    sampling_bias: int | float = 3
    num_candidates: int | None = None

    def complete(self) -> None:
        """Fill in fields that are None, and check the fields, each by itself and against the others."""
        super().complete()
        if self.head_size % 4:
            raise ValueError(
                f"The head size, hidden_size {self.hidden_size} / num_attention_heads {self.num_attention_heads}, is "
                f"{self.head_size}: rotary positions in rows and columns need a multiple of 4."
            )
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self._hidden_channels(self.min_hidden_size) < 1:
            raise ValueError(
                f"intermediate_size {self.intermediate_size} leaves the MLPs of min_hidden_size {self.min_hidden_size} "
                f"no channels, as the ratio to hidden_size {self.hidden_size} is kept: give a larger one."
            )

    def _check_fields(self) -> None:
        super()._check_fields()
        for name in _FLOATS:
            if (value := getattr(self, name)) is not None:
                setattr(self, name, float(value))

    @property
    def num_prefix_tokens(self) -> int:
        """The class token and the registers, which come before the patches."""
        return 1 + self.num_register_tokens

    def _hidden_channels(self, width: int) -> int:
        """Return the hidden channels of the MLPs of a size."""
        return width * self.intermediate_size // self.hidden_size

    def _size(self, sub_network: SubNetwork) -> dict[str, Any]:
        return super()._size(sub_network) | {"intermediate_size": self._hidden_channels(sub_network.width)}
