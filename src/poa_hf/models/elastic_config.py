"""What the elastic configurations have in common: their sizes as configurations, and checks of their fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from ..elastic import CANDIDATES, ElasticSpace
from ..ranges import NOT_NEGATIVE, SHARE_BELOW_1, Range
from ..sub_network import SubNetwork

if TYPE_CHECKING:
    # The types of a configuration's fields are checked first, and then it is completed (`complete`). Type checkers
    # see the types after that: fields that were None are filled in, and images and patches have one side.
    class _Configuration(PreTrainedConfig):
        image_size: Any = 224  # families differ in the types that they take
        hidden_size: int = 0
        num_channels: int = 3

    Side = int
    Whole = int
    Filled = int
    Stages = list[int]
    BackboneField: TypeAlias = "ElasticConfigMixin"
else:
    _Configuration = object
    Side = int | list[int] | tuple[int, int]
    Whole = int | float
    Filled = int | None
    Stages = list[int] | tuple[int, ...] | None
    BackboneField = dict | PreTrainedConfig | None


# the numbers that fields of several families take
SIZE = Range(1, 2**24, whole=True)  # channels and sides in pixels
BLOCKS = Range(1, 10_000, whole=True)
EPSILON = Range(0, 1, above=True)
SHARED_RANGES = {
    "image_size": SIZE,
    "num_channels": SIZE,
    "layer_norm_eps": EPSILON,
    "sampling_bias": Range(1, 100, below=True),
    "num_candidates": CANDIDATES,
}
TRANSFORMER_RANGES = {
    "patch_size": SIZE,
    "drop_path_rate": SHARE_BELOW_1,
    "hidden_dropout_prob": SHARE_BELOW_1,
    "attention_probs_dropout_prob": SHARE_BELOW_1,
    "initializer_range": NOT_NEGATIVE,
}


class CheckedFieldsMixin(_Configuration):
    """A configuration whose fields are checked against each other, wherever they come from."""

    def complete(self) -> None:
        """Fill in fields that are None, and check the fields, each by itself and against the others.

        A configuration does so when it is made, and a model when it is made of one, as fields may have been set since.

        Raises:
            ValueError: If a number is out of its range, or fields do not fit each other.
        """

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return the configuration of a dictionary and of fields beside it, which are checked together."""
        # the parent class sets those beside it afterwards, without a check
        names = {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
        names -= cls.sub_configs.keys()  # of which single fields may be given
        given = {name: kwargs.pop(name) for name in names & kwargs.keys()}
        return super().from_dict(config_dict | given, **kwargs)


class ElasticConfigMixin(CheckedFieldsMixin):
    """An elastic configuration: the full size in the fields of a plain one, and which smaller sizes it holds.

    A family sets the class attributes below and defines `complete`, `space`, `crop_multiple`, `_size` and `_only_size`
    (docs/new_family.md).

    Attributes:
        stock_config_class: Configuration class of the extracted models.
        shared_fields: Names of the fields that all sizes have in common.
        pretraining_fields: Names of the fields that only pre-training uses; in extracted models they are 0.
        ranges: The numbers that each field takes; `check_ranges` compares them.
        has_class_token: Whether the tokens begin with a class token that attends to all patches.
        family: What reports call the family, such as "ViT"; its `model_type` if it is empty.
        has_attention: Whether the model has attention, whose implementation can be chosen.
        packs_crops: Whether the model computes crops of several resolutions in one pass.
    """

    stock_config_class: ClassVar[type[PreTrainedConfig]] = PreTrainedConfig
    shared_fields: ClassVar[tuple[str, ...]] = ()
    pretraining_fields: ClassVar[tuple[str, ...]] = ()
    ranges: ClassVar[dict[str, Range]] = {}
    has_class_token: ClassVar[bool] = False
    family: ClassVar[str] = ""
    has_attention: ClassVar[bool] = True
    packs_crops: ClassVar[bool] = False

    @property
    def space(self) -> ElasticSpace:
        """All sizes of this configuration."""
        raise NotImplementedError

    @property
    def has_position_embeddings(self) -> bool:
        """Whether the model learns position embeddings for `image_size`, which are resized for crops of other sizes."""
        return False

    @property
    def has_mask_token(self) -> bool:
        """Whether the model has a mask token, without which it cannot be pre-trained."""
        return True

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens that come before those of the patches: the class token and registers."""
        return 0

    def _size(self, sub_network: SubNetwork) -> dict[str, Any]:
        """Return the fields of a plain configuration that set a sub-network's size."""
        raise NotImplementedError

    def _only_size(self, sub_network: SubNetwork) -> dict[str, Any]:
        """Return the fields of this class that set the smallest size to a sub-network's."""
        raise NotImplementedError

    def plain_config(self, sub_network: SubNetwork) -> ElasticConfigMixin:
        """Return the configuration of a sub-network as a model of this class without smaller sizes."""
        pretraining = {name: getattr(self, name) for name in self.pretraining_fields}
        return type(self)(**self._architecture(sub_network), **pretraining, **self._only_size(sub_network))

    def stock_config(self, sub_network: SubNetwork) -> PreTrainedConfig:
        """Return the configuration of a sub-network as a stock model."""
        fields = self._architecture(sub_network) | dict.fromkeys(self.pretraining_fields, 0.0)
        return self.stock_config_class(**fields)

    def _architecture(self, sub_network: SubNetwork) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.shared_fields} | self._size(sub_network)

    @property
    def crop_multiple(self) -> int:
        """Side in pixels of the square that one position of the last feature map stands for.

        The sides of global crops must be multiples of it.
        """
        raise NotImplementedError

    @property
    def patch_grid(self) -> int:
        """Side in pixels of the squares that masked prediction hides and predicts."""
        return self.crop_multiple // 2

    @property
    def min_crop_size(self) -> int:
        """Side in pixels of the smallest global crops."""
        return self.crop_multiple


def elastic_config(config: PreTrainedConfig | PreTrainedModel) -> ElasticConfigMixin:
    """Return the elastic configuration of a configuration or model: itself, or that of its backbone.

    Raises:
        ValueError: If the model has one size only.
    """
    config = getattr(config, "config", config)
    config = getattr(config, "backbone_config", config)
    if not isinstance(config, ElasticConfigMixin):
        name = getattr(config, "model_type", type(config).__name__)
        raise ValueError(f"{name!r} has one size only: give an elastic configuration, such as PoaViTConfig.")
    return config


def image_shape(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images that a configuration is made for.

    Without an `image_size`, 224 x 224 pixels are assumed.
    """
    size = getattr(config, "image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    return config.num_channels, height, width


def is_hierarchical(config: PreTrainedConfig) -> bool:
    """Whether a model has several stages of decreasing resolution: only such configurations have `depths`."""
    return hasattr(config, "depths")


def has_class_token(config: PreTrainedConfig) -> bool:
    """Whether a model's tokens begin with a class token that attends to all patches; for elastic and stock models."""
    return config.has_class_token if isinstance(config, ElasticConfigMixin) else not is_hierarchical(config)


def check_activation(config: PreTrainedConfig) -> None:
    """Raise ValueError unless transformers knows the activation of `hidden_act`."""
    name = getattr(config, "hidden_act", None)
    if name not in ACT2FN:
        raise ValueError(f"hidden_act {name!r} is not an activation of transformers, such as gelu or silu.")


def check_square(config: PreTrainedConfig, *names: str) -> None:
    """Replace each of these fields, a number or two equal ones, by the number; raise ValueError for other lists."""
    for name in names:
        size = getattr(config, name)
        sides = (size,) if isinstance(size, int) else tuple(size)
        if len(sides) > 2 or len(set(sides)) > 1:
            raise ValueError(f"{name} must be one number (images and patches are square), not {size}.")
        setattr(config, name, sides[0])


def check_width(
    width: int, name: str, unit: int, unit_name: str, full: int | None = None, step: int | None = None
) -> None:
    """Raise ValueError unless a width fits.

    Args:
        width: The value of the field `name`.
        name: `min_<field>` where the full width is given.
        unit: What every width has to be a positive multiple of.
        unit_name: The unit in words, for the message.
        full: The full width, the value of `<field>`, if `width` is the smallest width.
        step: Distance between widths, whose multiples must lead from the smallest to the full width.
    """
    if width < 1 or width % unit:
        raise ValueError(f"{name} {width} is not a positive multiple of {unit} ({unit_name}).")
    if full is None:
        return
    full_name = name.removeprefix("min_")
    if width > full:
        raise ValueError(f"{name} {width} is larger than {full_name} {full}: choose a smaller {name}.")
    if step is not None and (full - width) % step:
        raise ValueError(f"Steps of {step} ({full_name}_step) do not lead from {name} {width} to {full_name} {full}.")


def check_depths(min_depths: Sequence[int], depths: Sequence[int]) -> list[int]:
    """Return the fewest blocks of each stage as a list.

    Raises:
        ValueError: If the lists differ in length, or an entry is below 1 or above that of `depths`.
    """
    if len(min_depths) != len(depths):
        raise ValueError(f"min_depths {list(min_depths)} must have as many stages as depths {list(depths)}.")
    for stage, (fewest, full) in enumerate(zip(min_depths, depths, strict=True)):
        if not 1 <= fewest <= full:
            raise ValueError(f"min_depths of stage {stage + 1} is {fewest}: it must lie between 1 and depths' {full}.")
    return list(min_depths)
