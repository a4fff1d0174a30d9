"""What the elastic configurations have in common: sizes as configurations, and what they refuse."""

from collections.abc import Sequence

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from ..elastic import SubNetwork


class ElasticConfigMixin:
    """Gives an elastic configuration its sizes as configurations of their own.

    A family names its stock configuration, the fields that all sizes share (`shared_fields`) and those that only
    pre-training uses, which are 0 in stock models (`pretraining_fields`). It says which fields make a size (`_size`),
    and which make that size the only one (`_only_size`), and defines `space` and `crop_multiple`.
    """

    stock_config_class = PreTrainedConfig
    shared_fields = ()
    pretraining_fields = ()

    def _size(self, sub_network: SubNetwork) -> dict:
        raise NotImplementedError

    def _only_size(self, sub_network: SubNetwork) -> dict:
        raise NotImplementedError

    def plain_config(self, sub_network: SubNetwork) -> PreTrainedConfig:
        """The configuration of a sub-network as a model of this class with no other size."""
        pretraining = {name: getattr(self, name) for name in self.pretraining_fields}
        return type(self)(**self._architecture(sub_network), **pretraining, **self._only_size(sub_network))

    def stock_config(self, sub_network: SubNetwork) -> PreTrainedConfig:
        """The configuration of a sub-network as a stock model."""
        return self.stock_config_class(**self._architecture(sub_network), **dict.fromkeys(self.pretraining_fields, 0.0))

    def _architecture(self, sub_network: SubNetwork) -> dict:
        return {name: getattr(self, name) for name in self.shared_fields} | self._size(sub_network)

    @property
    def crop_multiple(self) -> int:
        """Pixels of one side of the last feature map's positions; global crops must be a multiple."""
        raise NotImplementedError

    @property
    def patch_grid(self) -> int:
        """Pixels of one side of the squares that masked prediction hides and predicts."""
        return self.crop_multiple // 2

    @property
    def min_crop_size(self) -> int:
        """Pixels of one side of the smallest global crops."""
        return self.crop_multiple


def check_positive(config, *names: str) -> None:
    """Each of these fields, and each entry of a list, is at least 1."""
    for name in names:
        value = getattr(config, name)
        if min(value if isinstance(value, list | tuple) else [value], default=0) < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")


def check_range(config, **ranges: tuple[float, float]) -> None:
    """Each field lies in `[low, high)`."""
    for name, (low, high) in ranges.items():
        if not low <= getattr(config, name) < high:
            raise ValueError(f"{name} must be at least {low} and below {high}, not {getattr(config, name)}.")


def check_activation(config) -> None:
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"hidden_act {config.hidden_act!r} is not an activation of transformers, as gelu or silu are.")


def check_square(config, *names: str) -> None:
    """Each of these fields is one positive number, or two that are the same; it is one number from then on."""
    for name in names:
        size = getattr(config, name)
        sides = (size,) if isinstance(size, int) else tuple(size)
        if len(sides) not in (1, 2) or len(set(sides)) > 1 or sides[0] < 1:
            raise ValueError(f"{name} must be one positive number (images and patches are square).")
        setattr(config, name, sides[0])


def check_width(width: int, name: str, unit: int, what: str, full: int | None = None, step: int | None = None) -> None:
    """`width` is a positive multiple of `unit`, which is `what`; and steps lead from it to the full one."""
    if width < 1 or width % unit:
        raise ValueError(f"{name} {width} is not a positive multiple of {unit} ({what}).")
    if full is None:
        return
    full_name = name.removeprefix("min_")
    if width > full:
        raise ValueError(f"{name} {width} is larger than {full_name} {full}: the smallest size cannot be.")
    if (full - width) % step:
        raise ValueError(f"Steps of {step} ({full_name}_step) do not lead from {name} {width} to {full_name} {full}.")


def check_depths(min_depths: Sequence[int], depths: Sequence[int]) -> list[int]:
    """The fewest blocks of each stage as a list, none below 1 or above `depths`."""
    if len(min_depths) != len(depths):
        raise ValueError(f"min_depths {list(min_depths)} must have as many stages as depths {list(depths)}.")
    for stage, (fewest, full) in enumerate(zip(min_depths, depths, strict=True)):
        if not 1 <= fewest <= full:
            raise ValueError(f"min_depths of stage {stage + 1} is {fewest}: it must lie between 1 and depths' {full}.")
    return list(min_depths)
