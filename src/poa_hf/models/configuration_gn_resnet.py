"""Configuration of the plain GroupNorm ResNet.

This file and `modeling_gn_resnet.py` travel with published models: they import nothing of poa_hf.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin

_AUTO_MAP = {
    "AutoConfig": "configuration_gn_resnet.GnResNetConfig",
    "AutoModel": "modeling_gn_resnet.GnResNetModel",
    "AutoModelForImageClassification": "modeling_gn_resnet.GnResNetForImageClassification",
    "AutoBackbone": "modeling_gn_resnet.GnResNetBackbone",
}
# the least and greatest number that each field takes
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("num_channels", "image_size", "embedding_size", "base_width", "num_groups"), (1, 2**24)),
    "hidden_sizes": (1, 2**24),
    "depths": (1, 10_000),
    "layer_norm_eps": (1e-38, 1),
}
_NOUNS = ("a number", "one number for each stage,")


@strict
class GnResNetConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of a ResNet of bottleneck blocks (arXiv 1512.03385) with GroupNorm (arXiv 1803.08494).

    The defaults are a ResNet-50. Unlike in `ResNetConfig`, the width of the middle convolutions is a field.
    `save_pretrained` also writes the model's code, so that the folder loads without poa_hf (`trust_remote_code=True`).

    Args:
        num_channels: Channels of the images.
        image_size: Side in pixels of the images that the model is meant for; it computes with any size.
        embedding_size: Channels of the stem.
        hidden_sizes: Channels of the output of each stage.
        depths: Blocks of each stage.
        base_width: Channels of the middle (3x3) convolutions of the first stage, doubled at each stage.
        num_groups: Channel groups of every GroupNorm.
        hidden_act: Activation, by its name in transformers.
        layer_norm_eps: Epsilon that GroupNorm adds to the variance.
        out_features: Which of `stage_names` a backbone returns; the last one by default.
        out_indices: The same by position.

    Raises:
        ValueError: If the lists of stages differ in length, a number is below 1, the groups do not divide a width, or
            the activation is unknown.
    """

    model_type = "gn_resnet"

    num_channels: int = 3
    image_size: int = 224
    embedding_size: int = 64
    hidden_sizes: list[int] | tuple[int, ...] = (256, 512, 1024, 2048)
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    base_width: int = 64
    num_groups: int = 32
    hidden_act: str = "relu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs: Any) -> None:
        self.check_stages()
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    def check_stages(self) -> None:
        """Raise ValueError unless all numbers are in their ranges and the stages fit each other."""
        self.hidden_sizes, self.depths = list(self.hidden_sizes), list(self.depths)
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            numbers = _as_list(value)
            if not numbers or not all(low <= number <= high for number in numbers):  # NaN is in no range
                raise ValueError(f"{name} is {value}: give {_NOUNS[isinstance(value, list)]} from {low:g} to {high:g}.")
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"hidden_sizes has {len(self.hidden_sizes)} stages and depths {len(self.depths)}: give both one number "
                "per stage."
            )
        for name in ("embedding_size", "hidden_sizes"):
            if any(width % self.num_groups for width in _as_list(getattr(self, name))):
                raise ValueError(
                    f"{name} {getattr(self, name)} has a width that the {self.num_groups} groups do not divide: use "
                    "multiples of num_groups."
                )
        if self.base_width % self.num_groups:  # the later stages' are multiples of the first's
            raise ValueError(
                f"base_width {self.base_width} is a middle width that the {self.num_groups} groups do not divide: use "
                "a multiple of num_groups."
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(
                f"hidden_act {self.hidden_act!r} is not an activation of transformers, such as relu or silu."
            )

    @property
    def num_stages(self) -> int:
        """The number of stages."""
        return len(self.depths)

    @property
    def stage_names(self) -> list[str]:
        """Names of the feature maps that a backbone can return."""
        return ["stem", *(f"stage{stage}" for stage in range(1, self.num_stages + 1))]

    @property
    def hidden_size(self) -> int:
        """Channels of the last stage."""
        return self.hidden_sizes[-1]

    @property
    def middle_widths(self) -> list[int]:
        """Channels of the middle convolutions of each stage."""
        return [self.base_width * 2**stage for stage in range(self.num_stages)]

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write the configuration, and beside it the files with the model's code."""
        # Done here because every way of saving a model saves its configuration: under FSDP, transformers copies the
        # file of the wrapper's class instead of ours. Subclasses are left out, as their code is not in these files.
        if type(self).__module__ == __name__:
            self.auto_map = dict(_AUTO_MAP)
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            for module in {reference.split(".")[0] for reference in _AUTO_MAP.values()}:
                source = Path(__file__).with_name(f"{module}.py")
                if source.exists():  # transformers may have loaded only this file
                    shutil.copyfile(source, Path(save_directory) / source.name)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


def _as_list(widths: Any) -> list[Any]:
    return widths if isinstance(widths, list) else [widths]


__all__ = ["GnResNetConfig"]
