"""What an extracted size can be written as."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import BitImageProcessorPil as ImageProcessor
from transformers import PreTrainedModel

from ...runs.checkpoints import MAX_SHARD_SIZE
from .onnx import as_onnx
from .timm import as_timm, save_as_timm
from .vit import as_vit


@dataclass(frozen=True)
class Artifact:
    """A converted model that `save` writes into a folder: weights, configuration and image processor."""

    num_parameters: int
    save: Callable[[Path], None]


@dataclass(frozen=True)
class Format:
    """`convert` raises ValueError where the format cannot hold the model. `load` is the code that loads it from
    `{folder}` and takes the features of `image`: see `snippet`. `with_options`, where there are options, gives it with
    these set."""

    name: str
    kind: str
    library: str
    load: str
    convert: Callable[[PreTrainedModel, ImageProcessor], Artifact]
    needs: str = "Stock `transformers` loads it; poa_hf is not needed."
    with_options: Callable[..., Format] | None = None

    def snippet(self, name: str) -> str:
        """The code that loads the model called `name`: the id of a repository, `namespace/name`, or else a folder."""
        name, on_hub = json.dumps(name, ensure_ascii=False), "/" in name
        return self.load.format(
            folder=name[1:-1],
            place="hf-hub" if on_hub else "local-dir",
            downloaded=f"snapshot_download({name})" if on_hub else name,
            import_download="from huggingface_hub import snapshot_download\n" if on_hub else "",
        )


def find_format(stock_type: str, name: str | None, **options) -> Format:
    """The format of that name for a family's stock model type, with its options set; None means its own. ValueError if
    it has no such one, or no such option."""
    own = Format(stock_type, stock_type, "transformers", _TRANSFORMERS % ("", "pooler_output"), _as_stock)
    formats = {format.name: format for format in _FORMATS.get(stock_type, [own, _onnx(stock_type)])}
    name = next(iter(formats)) if name is None else name
    if name not in formats:
        raise ValueError(f"{name!r} is not a format of this model: use {' or '.join(formats)}.")
    format = formats[name]
    if not options:
        return format
    if format.with_options is None:
        raise ValueError(f"{' and '.join(options)} cannot be given for the format {name}: leave it out.")
    return format.with_options(**options)


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

model = timm.create_model("{place}:{folder}", pretrained=True)
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
features = model(transform(image).unsqueeze(0))"""
_ONNX_RUNTIME = """import onnxruntime
{import_download}from transformers import AutoImageProcessor

folder = {downloaded}
processor = AutoImageProcessor.from_pretrained(folder)
session = onnxruntime.InferenceSession(folder + "/model.onnx")
pixel_values = processor(%s, return_tensors="np")["pixel_values"]
(features,) = session.run(["pooler_output"], {{"pixel_values": pixel_values}})"""


def _onnx(kind: str, onnx_batch: int | None = None) -> Format:
    def convert(model: PreTrainedModel, processor: ImageProcessor) -> Artifact:
        write = as_onnx(model, processor, onnx_batch)

        def save(folder: Path) -> None:
            write(folder)
            model.config.save_pretrained(folder)
            processor.save_pretrained(folder)

        return Artifact(model.num_parameters(), save)

    images = "image" if onnx_batch in (None, 1) else f"[image] * {onnx_batch}"
    takes = "batches of any size" if onnx_batch is None else f"batches of exactly {onnx_batch}"
    needs = f"ONNX Runtime computes it, for {takes}; `transformers` prepares the images. poa_hf is not needed."
    return Format("onnx", kind, "onnx", _ONNX_RUNTIME % images, convert, needs, partial(_onnx, kind))


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
        _onnx("DINOv2-style ViT"),
    ],
    "swin": [
        Format("swin", "Swin", "transformers", _TRANSFORMERS % ("", "pooler_output"), _as_stock),
        _onnx("Swin"),
    ],
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
        _onnx("ResNet with GroupNorm"),
    ],
}
