"""Configuration of the elastic ViT."""

from huggingface_hub.dataclasses import strict
from transformers import Dinov2Config

from ..elastic import ElasticSpace, SubNetwork
from .elastic_config import (
    ElasticConfigMixin,
    check_activation,
    check_positive,
    check_range,
    check_square,
    check_width,
)


@strict
class PoaViTConfig(ElasticConfigMixin, Dinov2Config):
    """An elastic ViT: the full size in the fields of `Dinov2Config`, the smallest size and the steps in new ones.

    The defaults are the published ViT-L supernet (arXiv 2408.01031): widths 384 to 1024 in steps of one
    head (64), depths 12 to 24, hence 143 sizes. A width is a number of heads: the head size
    (`hidden_size / num_attention_heads`) is the same in every size.

    Args:
        min_hidden_size: Smallest width. None means 3/8 of `hidden_size` (as published), rounded up to a step.
        min_num_hidden_layers: Smallest depth. None means half of `num_hidden_layers`, rounded up.
        hidden_size_step: Distance between widths. None means the head size.
        num_hidden_layers_step: Distance between depths.
        sampling_bias: How much more often the smallest width (and the smallest depth) is trained than the largest.

    Raises:
        ValueError: If a width is no multiple of the head size, a step does not lead from the smallest to the full size,
            the smallest is larger than the full size, the patch does not divide the image, or stock `dinov2` could not
            hold an extracted size (`head_dim`, a fractional `mlp_ratio`, images that are not square).
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

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    mlp_ratio: int | float = 4
    patch_size: int | list[int] | tuple[int, int] = 16
    layerscale_value: float = 1e-5
    drop_path_rate: float | int = 0.2

    min_hidden_size: int | None = None
    min_num_hidden_layers: int | None = None
    hidden_size_step: int | None = None
    num_hidden_layers_step: int = 1
    sampling_bias: int | float = 3

    def __post_init__(self, **kwargs):
        check_positive(self, "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "num_channels")
        check_range(self, drop_path_rate=(0, 1), sampling_bias=(1, 100))
        check_square(self, "image_size", "patch_size")
        if self.mlp_ratio != int(self.mlp_ratio):
            raise ValueError(f"mlp_ratio must be whole, as stock dinov2 has it, not {self.mlp_ratio}.")
        self.mlp_ratio = int(self.mlp_ratio)  # written 4.0
        if "head_dim" in kwargs:
            raise ValueError("head_dim cannot be given: the head size is hidden_size / num_attention_heads.")
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
            smallest, full, step = (getattr(self, field) for field in (f"min_{name}", name, f"{name}_step"))
            check_width(smallest, f"min_{name}", unit, what, full, step)
        image, patch = self.image_size, self.patch_size
        if image % patch:
            raise ValueError(
                f"image_size {image} is not a multiple of patch_size {patch}: "
                f"use {image - image % patch or patch} or {image + patch - image % patch}."
            )

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def crop_multiple(self) -> int:
        """Pixels of one side of a patch, which masked prediction hides and predicts."""
        return self.patch_size

    patch_grid = crop_multiple

    @property
    def space(self) -> ElasticSpace:
        widths = range(self.min_hidden_size, self.hidden_size + 1, self.hidden_size_step)
        depths = range(self.min_num_hidden_layers, self.num_hidden_layers + 1, self.num_hidden_layers_step)
        # ViT-S, B and L of the published space: base is three quarters as wide as large, and as deep as small.
        base_width = min(widths, key=lambda width: abs(width - 0.75 * self.hidden_size))
        named = (
            ("small", SubNetwork(self.min_hidden_size, self.min_num_hidden_layers)),
            ("base", SubNetwork(base_width, self.min_num_hidden_layers)),
            ("large", SubNetwork(self.hidden_size, self.num_hidden_layers)),
        )
        bias = self.sampling_bias
        return ElasticSpace.of(widths, tuple((depth,) for depth in depths), bias, bias, named)

    @property
    def has_position_embeddings(self) -> bool:
        return True

    def _size(self, sub_network: SubNetwork) -> dict:
        return {
            "hidden_size": sub_network.width,
            "num_hidden_layers": sub_network.depths[0],
            "num_attention_heads": sub_network.width // self.head_size,
        }

    def _only_size(self, sub_network: SubNetwork) -> dict:
        return {"min_hidden_size": sub_network.width, "min_num_hidden_layers": sub_network.depths[0]}
