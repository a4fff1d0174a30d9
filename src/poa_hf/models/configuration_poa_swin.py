"""Configuration of the elastic Swin."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import SwinConfig

from ..elastic import ElasticSpace, stage_depths
from ..ranges import Range, check_ranges
from ..sub_network import SubNetwork
from .elastic_config import (
    BLOCKS,
    SHARED_RANGES,
    SIZE,
    TRANSFORMER_RANGES,
    ElasticConfigMixin,
    Filled,
    Side,
    Stages,
    check_activation,
    check_depths,
    check_square,
    check_width,
)


@strict
class PoaSwinConfig(ElasticConfigMixin, SwinConfig):
    """Configuration of an elastic Swin, which holds smaller ones.

    The full size is given in the fields of `SwinConfig`, the smallest size and the step in new ones. The defaults are
    the published Swin-B (arXiv 2408.01031): widths of the first stage 96 to 128 in steps of one head (16) and 6 to 18
    blocks in stage 3, which makes 39 sizes. The head size is the same in all sizes.

    Args:
        embed_dim: Full width of the first stage; each later stage is twice as wide as the one before.
        depths: Blocks of each stage at full depth.
        num_heads: Heads of each stage at full width. None means heads of size 16.
        min_embed_dim: Smallest width of the first stage. None means 3/4 of `embed_dim` (as published), rounded up to a
            step.
        embed_dim_step: Distance between widths. None means the head size.
        min_depths: Fewest blocks of each stage. None means a third of the deepest stage, rounded up, and all blocks of
            the others.
        sampling_bias: How much more often the smallest width (and the smallest depth) is trained than the largest.
        num_candidates: How many sizes are trained, evenly spread, the smallest and the full one among them (the paper
            gains by 16 of 143). The others are extracted as well. None trains all.
        image_size: Side of the images in pixels.
        patch_size: Side of the patches in pixels.
        num_channels: Channels of the images.
        window_size: Side of the attention windows in positions of the feature map.
        mlp_ratio: Width of the MLPs' hidden layers over the width.
        hidden_act: Activation of the MLPs, by its name in transformers.
        qkv_bias: Whether queries, keys and values have biases.
        use_absolute_embeddings: Whether positions are also embedded in the input, besides the windows' relative bias.
        drop_path_rate: Stochastic depth in training, the same in all blocks: the share of images that skip a branch.
            Extracted models have 0.
        hidden_dropout_prob: Dropout after the linear layers, in all sizes.
        attention_probs_dropout_prob: Dropout of the attention weights, in all sizes.
        layer_norm_eps: Epsilon that the layer normalisations of the blocks add to the variance.
        initializer_range: Standard deviation of the initial weights.
        encoder_stride: Used by stock Swin's masked image modelling only.

    Raises:
        ValueError: If the width of a stage is not a multiple of its head size, a step does not lead from the smallest
            to the full size, the smallest is larger than the full size, the lists of stages differ in length, the
            window is larger than the last feature map (an extracted stock Swin would shrink it and lose its position
            bias), or images or patches are not square.

    Example:
        >>> config = PoaSwinConfig(embed_dim=32, depths=[2, 2, 6, 2], min_embed_dim=16)
        >>> [str(size) for size in config.space][:3]
        ['16x2-2-2-2', '16x2-2-3-2', '16x2-2-4-2']
        >>> str(config.space.named["tiny"]), len(config.space)
        ('16x2-2-2-2', 10)
    """

    model_type = "poa_swin"
    family = "Swin"
    stock_config_class = SwinConfig
    shared_fields = tuple(
        "image_size patch_size num_channels window_size mlp_ratio qkv_bias hidden_dropout_prob hidden_act "
        "attention_probs_dropout_prob use_absolute_embeddings initializer_range layer_norm_eps encoder_stride".split()
    )
    pretraining_fields = ("drop_path_rate",)
    ranges = {
        **SHARED_RANGES,
        **TRANSFORMER_RANGES,
        **dict.fromkeys(("embed_dim", "num_heads", "min_embed_dim", "embed_dim_step", "window_size"), SIZE),
        **dict.fromkeys(("depths", "min_depths"), BLOCKS),
        "mlp_ratio": Range(0, 1024, above=True),
        "encoder_stride": SIZE,
    }

    embed_dim: int = 128
    depths: list[int] | tuple[int, ...] = (2, 2, 18, 2)
    num_heads: Stages = None  # type: ignore[assignment]
    drop_path_rate: float | int = 0.2
    image_size: Side = 224
    patch_size: Side = 4

    min_embed_dim: Filled = None  # type: ignore[assignment]
    embed_dim_step: Filled = None  # type: ignore[assignment]
    min_depths: Stages = None  # type: ignore[assignment]
    sampling_bias: int | float = 2
    num_candidates: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_fields()  # before the stock class makes lists of such lengths
        super().__post_init__(**kwargs)
        self.complete()

    def _check_fields(self) -> None:
        check_ranges(self, self.ranges)
        check_activation(self)
        check_square(self, "image_size", "patch_size")
        if len(self.depths) < 2:
            raise ValueError(f"depths {list(self.depths)} has one stage, but a Swin has at least 2.")
        self.depths = list(self.depths)

    def complete(self) -> None:
        """Fill in heads, the smallest size and the step where they are None, and check all fields."""
        self._check_fields()
        if self.num_heads is None:
            check_width(self.embed_dim, "embed_dim", 16, "the head size; or give num_heads")
            self.num_heads = [self.embed_dim * 2**stage // 16 for stage in range(len(self.depths))]
        self.num_heads = list(self.num_heads)
        if len(self.num_heads) != len(self.depths):
            raise ValueError(f"num_heads {self.num_heads} must have as many stages as depths {self.depths}.")
        for stage, heads in enumerate(self.num_heads):
            if self.embed_dim * 2**stage % heads:
                raise ValueError(
                    f"Stage {stage + 1} is {self.embed_dim * 2**stage} wide, which {heads} heads do not divide: "
                    "change embed_dim or num_heads."
                )
        unit = self._width_unit
        if self.embed_dim_step is None:
            self.embed_dim_step = unit
        what = "whole heads in every stage"
        check_width(self.embed_dim_step, "embed_dim_step", unit, what)
        if self.min_embed_dim is None:
            self.min_embed_dim = self.embed_dim - self.embed_dim // 4 // self.embed_dim_step * self.embed_dim_step
        check_width(self.min_embed_dim, "min_embed_dim", unit, what, self.embed_dim, self.embed_dim_step)
        if int(self.mlp_ratio * self.min_embed_dim) < 1:
            raise ValueError(
                f"mlp_ratio {self.mlp_ratio} leaves the MLPs of min_embed_dim {self.min_embed_dim} no channels: give a "
                "larger one."
            )
        if self.min_depths is None:
            deepest = self.depths.index(max(self.depths))
            self.min_depths = [math.ceil(d / 3) if i == deepest else d for i, d in enumerate(self.depths)]
        self.min_depths = check_depths(self.min_depths, self.depths)
        positions = -(-self.image_size // self.crop_multiple)
        if self.window_size > positions:
            raise ValueError(
                f"window_size {self.window_size} does not fit: the last feature map of images of {self.image_size} has "
                f"{positions} positions a side: use at most that many."
            )

    @property
    def _width_unit(self) -> int:
        """The smallest width of the first stage with whole heads in every stage; the others are its multiples."""
        sizes = [self.embed_dim * 2**stage // heads for stage, heads in enumerate(self.num_heads)]
        return math.lcm(*(size // math.gcd(size, 2**stage) for stage, size in enumerate(sizes)))

    @property
    def crop_multiple(self) -> int:
        """Side in pixels of one position of the last feature map, a multiple of which global crops must be."""
        return self.patch_size * 2 ** (len(self.depths) - 1)

    @property
    def min_crop_size(self) -> int:
        """Side in pixels of the smallest global crops and of the smallest images of extracted models.

        Stock Swin's window must fit the last feature map.
        """
        return self.window_size * self.crop_multiple

    @property
    def space(self) -> ElasticSpace:
        """All sizes, among them `tiny`, `small` and `base`."""
        widths = range(self.min_embed_dim, self.embed_dim + 1, self.embed_dim_step)
        depths = stage_depths(tuple(self.min_depths), tuple(self.depths))
        # as Swin-T, S and B in the published space
        named = (
            ("tiny", SubNetwork(widths[0], depths[0])),
            ("small", SubNetwork(widths[0], depths[-1])),
            ("base", SubNetwork(widths[-1], depths[-1])),
        )
        return ElasticSpace.from_axes(
            widths, depths, self.sampling_bias, self.sampling_bias, named, self.num_candidates
        )

    @property
    def has_position_embeddings(self) -> bool:
        return self.use_absolute_embeddings

    def _size(self, sub_network: SubNetwork) -> dict[str, Any]:
        heads = [heads * sub_network.width // self.embed_dim for heads in self.num_heads]
        return {"embed_dim": sub_network.width, "depths": list(sub_network.depths), "num_heads": heads}

    def _only_size(self, sub_network: SubNetwork) -> dict[str, Any]:
        return {"min_embed_dim": sub_network.width, "min_depths": sub_network.depths}
