"""What the configurations of elastic ViTs have in common: widths of whole heads, depths, patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..elastic import ElasticSpace
from ..ranges import check_ranges
from ..sub_network import SubNetwork
from .elastic_config import (
    BLOCKS,
    SHARED_RANGES,
    SIZE,
    ElasticConfigMixin,
    Filled,
    Side,
    check_activation,
    check_square,
    check_width,
)

# the numbers that fields of all ViTs take
VIT_RANGES = {
    **SHARED_RANGES,
    "patch_size": SIZE,
    **dict.fromkeys(("hidden_size", "num_attention_heads", "min_hidden_size", "hidden_size_step"), SIZE),
    **dict.fromkeys(("num_hidden_layers", "min_num_hidden_layers", "num_hidden_layers_step"), BLOCKS),
}


class ElasticViTConfigMixin(ElasticConfigMixin):
    """The sizes of a ViT: a width is a number of heads of one size, a depth a number of blocks.

    A family declares the fields `min_hidden_size`, `min_num_hidden_layers`, `hidden_size_step` (all None by default),
    `num_hidden_layers_step` (1), `sampling_bias` (3) and `num_candidates` (None), and extends `_size` if other fields
    follow the width.
    """

    has_class_token = True

    if TYPE_CHECKING:
        num_hidden_layers: int
        num_attention_heads: int
        patch_size: Side
        min_hidden_size: Filled
        min_num_hidden_layers: Filled
        hidden_size_step: Filled
        num_hidden_layers_step: int
        sampling_bias: int | float
        num_candidates: int | None

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_fields()  # before the stock class makes lists of such lengths
        if "head_dim" in kwargs:
            raise ValueError("head_dim cannot be set: the head size is hidden_size / num_attention_heads.")
        super().__post_init__(**kwargs)
        self.complete()

    def complete(self) -> None:
        """Fill in the smallest size and the steps where they are None, and check all fields."""
        self._check_fields()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}: "
                "change one of them so that every head has the same size."
            )
        self._fill_sizes()
        image, patch = self.image_size, self.patch_size
        if image % patch:
            multiples = sorted({max(image - image % patch, patch), image + patch - image % patch})
            raise ValueError(
                f"image_size {image} is not a multiple of patch_size {patch}: use {' or '.join(map(str, multiples))}."
            )

    def _check_fields(self) -> None:
        """Check the fields as they are given, each by itself; a family may check more of its own."""
        check_ranges(self, self.ranges)
        check_square(self, "image_size", "patch_size")
        check_activation(self)

    def _fill_sizes(self) -> None:
        """Fill in the smallest size and the steps where they are None, and check them."""
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

    @property
    def head_size(self) -> int:
        """Channels of an attention head, the same in all sizes."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_prefix_tokens(self) -> int:
        return 1

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
        return ElasticSpace.from_axes(
            widths, tuple((depth,) for depth in depths), bias, bias, named, self.num_candidates
        )

    def _size(self, sub_network: SubNetwork) -> dict[str, Any]:
        return {
            "hidden_size": sub_network.width,
            "num_hidden_layers": sub_network.depths[0],
            "num_attention_heads": sub_network.width // self.head_size,
        }

    def _only_size(self, sub_network: SubNetwork) -> dict[str, Any]:
        return {"min_hidden_size": sub_network.width, "min_num_hidden_layers": sub_network.depths[0]}
