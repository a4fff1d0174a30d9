"""Configuration of the elastic GroupNorm ResNet."""

from typing import Any

from huggingface_hub.dataclasses import strict

from ..elastic import ElasticSpace, stage_depths
from ..ranges import check_ranges
from ..sub_network import SubNetwork
from .configuration_gn_resnet import GnResNetConfig
from .elastic_config import BLOCKS, SHARED_RANGES, SIZE, ElasticConfigMixin, Filled, Stages, check_depths, check_width


@strict
class PoaResNetConfig(ElasticConfigMixin, GnResNetConfig):
    """Configuration of an elastic GroupNorm ResNet, which holds smaller ones.

    The full size is given in the fields of `GnResNetConfig`, the smallest size and the step in new ones. Only the
    middle channels of the blocks (`base_width` in stage 1, doubled at each stage) and the depths are elastic; stem,
    shortcuts and outputs of blocks are the same in all sizes. The defaults are the published ResNet-152 (arXiv
    2408.01031): middle widths 64, 96 and 128, 4 to 8 blocks in stage 2 and 6 to 36 in stage 3, which makes 465 sizes.

    Args:
        base_width: Full width of the middle convolutions of stage 1.
        depths: Blocks of each stage at full depth.
        min_base_width: Smallest middle width of stage 1. None means half of `base_width`, rounded up to a step.
        base_width_step: Distance between widths. None means `num_groups`.
        min_depths: Fewest blocks of each stage. None means half of stage 2 and a sixth of stage 3 (as published), each
            rounded up, and all blocks of the others.
        sampling_bias: How much more often the shallowest networks are trained than the deepest; all widths are trained
            equally often.
        num_candidates: How many sizes are trained, evenly spread, the smallest and the full one among them (the paper
            gains by 16 of 143). The others are extracted as well. None trains all.
        image_size: Side in pixels of the images that the model is meant for; it computes with any size.
        num_channels: Channels of the images.
        embedding_size: Channels of the stem.
        hidden_sizes: Channels of the output of each stage.
        num_groups: Channel groups of every GroupNorm.
        hidden_act: Activation, by its name in transformers.
        layer_norm_eps: Epsilon that GroupNorm adds to the variance.

    Raises:
        ValueError: If the groups do not divide a width, a step does not lead from the smallest to the full width, the
            smallest is larger than the full size, or the lists of stages differ in length.

    Example:
        >>> config = PoaResNetConfig(depths=[3, 4, 23, 3], base_width=64, min_base_width=32)
        >>> str(config.space.full), sorted(config.space.named)
        ('64x3-4-23-3', ['101', '38', '68'])
        >>> config.stock_config(config.space.full).model_type
        'gn_resnet'
    """

    model_type = "poa_resnet"
    family = "ResNet"
    stock_config_class = GnResNetConfig
    has_attention = False
    shared_fields = tuple(
        "image_size num_channels embedding_size hidden_sizes num_groups hidden_act layer_norm_eps".split()
    )

    ranges = {
        **SHARED_RANGES,
        **dict.fromkeys(("embedding_size", "hidden_sizes", "num_groups"), SIZE),
        **dict.fromkeys(("base_width", "min_base_width", "base_width_step"), SIZE),
        **dict.fromkeys(("depths", "min_depths"), BLOCKS),
    }

    depths: list[int] | tuple[int, ...] = (3, 8, 36, 3)
    base_width: int = 128

    min_base_width: Filled = None  # type: ignore[assignment]
    base_width_step: Filled = None  # type: ignore[assignment]
    min_depths: Stages = None  # type: ignore[assignment]
    sampling_bias: int | float = 2
    num_candidates: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # of a plain one, whose code does not hold this class
        check_ranges(self, self.ranges)
        super().__post_init__(**kwargs)
        self.complete()

    def complete(self) -> None:
        """Fill in the smallest size and the step where they are None, and check all fields."""
        check_ranges(self, self.ranges)
        self.check_stages()
        if len(self.depths) < 2:
            raise ValueError(f"depths {self.depths} has one stage, but an elastic ResNet has at least 2.")
        what = "num_groups, which every middle width must be a multiple of"
        if self.base_width_step is None:
            self.base_width_step = self.num_groups
        check_width(self.base_width_step, "base_width_step", self.num_groups, what)
        if self.min_base_width is None:
            missing_steps = self.base_width // 2 // self.base_width_step
            self.min_base_width = self.base_width - missing_steps * self.base_width_step
        check_width(self.min_base_width, "min_base_width", self.num_groups, what, self.base_width, self.base_width_step)
        if self.min_depths is None:
            parts = {1: 2, 2: 6}
            self.min_depths = [-(-depth // parts.get(stage, 1)) for stage, depth in enumerate(self.depths)]
        self.min_depths = check_depths(self.min_depths, self.depths)

    @property
    def crop_multiple(self) -> int:
        """Side in pixels of one position of the last feature map, a multiple of which global crops must be."""
        return 4 * 2 ** (len(self.depths) - 1)

    @property
    def space(self) -> ElasticSpace:
        """All sizes, three of them named by their numbers of layers, such as `50`, `101` and `152`."""
        widths = range(self.min_base_width, self.base_width + 1, self.base_width_step)
        depths = stage_depths(tuple(self.min_depths), tuple(self.depths))
        # ResNet-50, 101 and 152 have the smallest, middle and largest number of blocks and the smallest width
        totals = [sum(choice) for choice in depths]
        middle = min(range(len(depths)), key=lambda index: abs(totals[index] - (totals[0] + totals[-1]) / 2))
        named = tuple(
            (str(3 * totals[index] + 2), SubNetwork(widths[0], depths[index])) for index in (0, middle, len(depths) - 1)
        )
        return ElasticSpace.from_axes(widths, depths, 1, self.sampling_bias, named, self.num_candidates)

    def _size(self, sub_network: SubNetwork) -> dict[str, Any]:
        return {"base_width": sub_network.width, "depths": list(sub_network.depths)}

    def _only_size(self, sub_network: SubNetwork) -> dict[str, Any]:
        return {"min_base_width": sub_network.width, "min_depths": sub_network.depths}
