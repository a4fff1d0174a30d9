"""What an extracted size can be written as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import BitImageProcessorPil as ImageProcessor
from transformers import PreTrainedModel

from ..training.checkpoints import MAX_SHARD_SIZE
from .timm_format import as_timm, save_as_timm
from .vit_format import as_vit


@dataclass(frozen=True)
class Artifact:
    """A converted model that `save` writes into a folder: weights, configuration and image processor."""

    num_parameters: int
    save: Callable[[Path], None]


@dataclass(frozen=True)
class Format:
    """`convert` raises ValueError where the format cannot hold the model. `load` is the code that loads it from
    `{folder}` and takes the features of `image`."""

    name: str
    kind: str
    library: str
    load: str
    convert: Callable[[PreTrainedModel, ImageProcessor], Artifact]
    needs: str = "Stock `transformers` loads it; poa_hf is not needed."


def find_format(stock_type: str, name: str | None) -> Format:
    """The format of that name for a family's stock model type; None means its own. ValueError if it has no such one."""
    own = Format(stock_type, stock_type, "transformers", _TRANSFORMERS % ("", "pooler_output"), _as_stock)
    formats = {format.name: format for format in _FORMATS.get(stock_type, [own])}
    if name is None:
        return next(iter(formats.values()))
    if name not in formats:
        raise ValueError(f"{name!r} is not a format of this model: use {' or '.join(formats)}.")
    return formats[name]


def _as_stock(model: PreTrainedModel, processor: ImageProcessor) -> Artifact:
    def save(folder: Path) -> None:
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
        processor.save_pretrained(folder)

    return Artifact(model.num_parameters(), save)


def _as_vit(model: PreTrainedModel, processor: ImageProcessor) -> Artifact:
    return _as_stock(as_vit(model, image_size=processor.crop_size["height"]), processor)


def _as_timm(model: PreTrainedModel, processor: ImageProcessor) -> Artifact:
    as_timm(model, processor)  # refuses before anything is written
    return Artifact(model.num_parameters(), partial(save_as_timm, model, processor=processor))


_TRANSFORMERS = """from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{folder}")
model = AutoModel.from_pretrained("{folder}"%s)
features = model(**processor(image, return_tensors="pt")).%s"""
_TIMM = """import timm

model = timm.create_model("local-dir:{folder}", pretrained=True)
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = model(transform(image).unsqueeze(0))"""

# of each stock model type, its own first
_FORMATS = {
    "dinov2": [
        Format("dinov2", "DINOv2-style ViT", "transformers", _TRANSFORMERS % ("", "pooler_output"), _as_stock),
        # a stock vit makes a pooler of random weights unless told not to
        Format(
            "vit",
            "ViT",
            "transformers",
            _TRANSFORMERS % (", add_pooling_layer=False", "last_hidden_state[:, 0]"),
            _as_vit,
        ),
    ],
    "swin": [Format("swin", "Swin", "transformers", _TRANSFORMERS % ("", "pooler_output"), _as_stock)],
    "gn_resnet": [
        Format(
            "gn_resnet",
            "ResNet with GroupNorm",
            "transformers",
            _TRANSFORMERS % (", trust_remote_code=True", "pooler_output"),
            _as_stock,
            "The folder holds the model's code, hence `trust_remote_code=True`, which is needless beside poa_hf.",
        ),
        Format("timm", "ResNet with GroupNorm", "timm", _TIMM, _as_timm, "`timm` loads it; poa_hf is not needed."),
    ],
}
