"""Configuration of the elastic Swin."""

import math

from huggingface_hub.dataclasses import strict
from transformers import SwinConfig

from ..elastic import ElasticSpace, SubNetwork, stage_depths
from .elastic_config import (
    ElasticConfigMixin,
    check_activation,
    check_depths,
    check_positive,
    check_range,
    check_square,
    check_width,
)


@strict
class PoaSwinConfig(ElasticConfigMixin, SwinConfig):
    """An elastic Swin: the full size in the fields of `SwinConfig`, the smallest size and the step in new ones.

    The defaults are the published Swin-B supernet (arXiv 2408.01031): widths of the first stage 96 to 128 in steps of
    one head (16), 6 to 18 blocks in stage 3, hence 39 sizes. The head size is the same in every size.

    Args:
        num_heads: Heads of each stage. None means heads of size 16.
        min_embed_dim: Smallest width of the first stage. None means 3/4 of `embed_dim` (as published), rounded up to a
            step.
        embed_dim_step: Distance between widths. None means the head size.
        min_depths: Fewest blocks of each stage. None means a third of the deepest stage, rounded up, and all of the
            others.
        sampling_bias: How much more often the smallest width (and the smallest depth) is trained than the largest.

    Raises:
        ValueError: If a stage's width is no multiple of its head size, a step does not lead from the smallest to the
            full size, the smallest is larger than the full size, the lists of stages differ in length, the window is
            larger than the last feature map (an extracted stock Swin would shrink it and lose its position bias), or
            images or patches are not square.
    """

    model_type = "poa_swin"
    stock_config_class = SwinConfig
    shared_fields = tuple(
        "image_size patch_size num_channels window_size mlp_ratio qkv_bias hidden_dropout_prob hidden_act "
        "attention_probs_dropout_prob use_absolute_embeddings initializer_range layer_norm_eps encoder_stride".split()
    )
    pretraining_fields = ("drop_path_rate",)

    embed_dim: int = 128
    depths: list[int] | tuple[int, ...] = (2, 2, 18, 2)
    num_heads: list[int] | tuple[int, ...] | None = None
    drop_path_rate: float | int = 0.2

    min_embed_dim: int | None = None
    embed_dim_step: int | None = None
    min_depths: list[int] | tuple[int, ...] | None = None
    sampling_bias: int | float = 2

    def __post_init__(self, **kwargs):
        check_positive(self, "embed_dim", "depths", "window_size", "mlp_ratio", "num_channels")
        check_range(self, drop_path_rate=(0, 1), sampling_bias=(1, 100))
        check_activation(self)
        check_square(self, "image_size", "patch_size")
        if len(self.depths) < 2:
            raise ValueError(f"depths {list(self.depths)} has one stage: a Swin has at least 2.")
        self.depths = list(self.depths)
        if self.num_heads is None:
            check_width(self.embed_dim, "embed_dim", 16, "the head size; or give num_heads")
            self.num_heads = [self.embed_dim * 2**stage // 16 for stage in range(len(self.depths))]
        self.num_heads = list(self.num_heads)
        check_positive(self, "num_heads")
        super().__post_init__(**kwargs)
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
        if self.min_depths is None:
            deepest = self.depths.index(max(self.depths))
            self.min_depths = [math.ceil(d / 3) if i == deepest else d for i, d in enumerate(self.depths)]
        self.min_depths = check_depths(self.min_depths, self.depths)
        positions = -(-self.image_size // self.crop_multiple)
        if self.window_size > positions:
            raise ValueError(
                f"window_size {self.window_size} does not fit: the last feature map of images of {self.image_size} has "
                f"{positions} positions a side; use at most as many."
            )

    @property
    def _width_unit(self) -> int:
        """The widths of the first stage with whole heads in every stage are the multiples of this."""
        sizes = [self.embed_dim * 2**stage // heads for stage, heads in enumerate(self.num_heads)]
        return math.lcm(*(size // math.gcd(size, 2**stage) for stage, size in enumerate(sizes)))

    @property
    def crop_multiple(self) -> int:
        return self.patch_size * 2 ** (len(self.depths) - 1)

    @property
    def min_crop_size(self) -> int:
        """The smallest global crop, hence the smallest image of extracted models: stock Swin's window must fit the last
        feature map."""
        return self.window_size * self.crop_multiple

    @property
    def space(self) -> ElasticSpace:
        widths = range(self.min_embed_dim, self.embed_dim + 1, self.embed_dim_step)
        depths = stage_depths(tuple(self.min_depths), tuple(self.depths))
        # Swin-T, S and B of the published space
        named = (
            ("tiny", SubNetwork(widths[0], depths[0])),
            ("small", SubNetwork(widths[0], depths[-1])),
            ("base", SubNetwork(widths[-1], depths[-1])),
        )
        return ElasticSpace.of(widths, depths, self.sampling_bias, self.sampling_bias, named)

    @property
    def has_position_embeddings(self) -> bool:
        return self.use_absolute_embeddings

    def _size(self, sub_network: SubNetwork) -> dict:
        heads = [heads * sub_network.width // self.embed_dim for heads in self.num_heads]
        return {"embed_dim": sub_network.width, "depths": list(sub_network.depths), "num_heads": heads}

    def _only_size(self, sub_network: SubNetwork) -> dict:
        return {"min_embed_dim": sub_network.width, "min_depths": sub_network.depths}
