"""The formats in which an extracted size can be written: stock transformers models, timm, ONNX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers import BitImageProcessorPil as ImageProcessor
from transformers import PreTrainedModel

from ...runs.checkpoints import MAX_SHARD_SIZE
from .onnx import OnnxOptions, as_onnx
from .snippets import onnx_hints, onnx_snippet, timm_hints, timm_snippet, transformers_snippet
from .timm import as_timm, save_as_timm
from .vit import as_vit

# What cards call the models of a family; others are called by their type.
_KINDS = {
    "dinov2": "DINOv2-style ViT",
    "dinov2_with_registers": "DINOv2-style ViT with registers",
    "dinov3_vit": "DINOv3-style ViT",
    "gn_resnet": "GroupNorm ResNet",
    "swin": "Swin Transformer",
}


@dataclass(frozen=True)
class Artifact:
    """A converted model, ready to be written.

    Args:
        num_parameters: The number of parameters of the model.
        save: Writes weights, configuration and image processor into an existing folder.
        hints: What the model's card says about other programs that run the model of a given name, as Markdown.
    """

    num_parameters: int
    save: Callable[[Path], None]
    hints: Callable[[str], str] = lambda name: ""


@dataclass(frozen=True)
class Format:
    """A way to write an extracted size, and what its card says about it.

    Args:
        name: The value of `--format`.
        model_kind: What the card calls the model, such as "DINOv2-style ViT".
        library: The Hub's `library_name`.
        convert: Converts a stock model with its image processor. Raises `ValueError` if the format cannot hold them.
        snippet: Code that loads the model of a given name (see `snippets`).
        requirements: One or two sentences on what the code needs.
        has_remote_code: Whether transformers loads the model with code that comes with its weights.
        tags: Further tags of the model on the Hub.
    """

    name: str
    model_kind: str
    library: str
    convert: Callable[[PreTrainedModel, ImageProcessor], Artifact]
    snippet: Callable[[str], str] = transformers_snippet
    requirements: str = "Stock `transformers` loads it; poa_hf is not needed."
    has_remote_code: bool = False
    tags: tuple[str, ...] = ()


def find_format(stock_type: str, name: str | None = None, onnx: OnnxOptions | None = None) -> Format:
    """Return a format of the stock models of one type.

    >>> find_format("dinov2").name, find_format("gn_resnet", "timm").library
    ('dinov2', 'timm')

    Args:
        stock_type: The `model_type` of the extracted models, such as `dinov2`.
        name: The format's name; by default the family's own format.
        onnx: How a model is written as ONNX.

    Raises:
        ValueError: If the family has no such format, or an option of ONNX is given for another format.
    """
    onnx = onnx or OnnxOptions()
    formats = {format.name: format for format in _formats(stock_type, onnx)}
    if name is None:
        name = next(iter(formats))
    if name not in formats:
        *others, last = formats
        raise ValueError(f"{name!r} is not a format of this model: use {', '.join(others)} or {last}.")
    if onnx.given and name != "onnx":
        raise ValueError(f"{onnx.given[0]} cannot be given for the format {name}: leave it out.")
    return formats[name]


def format_to_publish(model: PreTrainedModel, processor: ImageProcessor) -> Format:
    """Return the format in which a size is published: the family's own, or timm's where that spares remote code.

    Args:
        model: One of the extracted models.
        processor: Its image processor.
    """
    own = find_format(model.config.model_type)
    if not own.has_remote_code:
        return own
    try:
        as_timm(model, processor)
    except ValueError:
        return own
    return find_format(model.config.model_type, "timm")


def _formats(stock_type: str, onnx: OnnxOptions) -> list[Format]:
    """Return all formats of a family, its own first."""
    kind = _KINDS.get(stock_type, stock_type)
    own = Format(stock_type, kind, "transformers", _as_stock)
    others = []
    if stock_type == "dinov2":
        # a stock vit adds a pooler with random weights unless it is told not to
        vit_snippet = partial(
            transformers_snippet, load_options=", add_pooling_layer=False", features="last_hidden_state[:, 0]"
        )
        others.append(Format("vit", "ViT", "transformers", _as_vit, vit_snippet))
    elif stock_type == "gn_resnet":
        needs_code = (
            "The model's code comes with its weights, hence `trust_remote_code=True`; after `import poa_hf` it is not "
            "needed."
        )
        snippet = partial(transformers_snippet, load_options=", trust_remote_code=True")
        own = replace(own, snippet=snippet, requirements=needs_code, has_remote_code=True)
    return [own, *others, _timm_format(kind), _onnx_format(kind, onnx)]


def _timm_format(kind: str) -> Format:
    requirements = "`timm` loads it; poa_hf is not needed."
    # by this tag, which timm's own models have too, the Hub knows that transformers loads the model as well
    return Format("timm", kind, "timm", _as_timm, timm_snippet, requirements, tags=("transformers",))


def _onnx_format(kind: str, options: OnnxOptions) -> Format:
    batch_size = options.onnx_batch
    batches = "of any size" if batch_size is None else f"of exactly {batch_size}"
    half = " Weights and computation are in float16, inputs and outputs in float32."
    requirements = (
        f"ONNX Runtime runs it on batches {batches}; `transformers` prepares the images. poa_hf is not needed."
        f"{half if options.onnx_dtype == 'float16' else ''}"
    )
    convert = partial(_as_onnx, options=options)
    return Format("onnx", kind, "onnx", convert, partial(onnx_snippet, batch_size=batch_size), requirements)


def _as_stock(model: PreTrainedModel, processor: ImageProcessor) -> Artifact:
    def save(folder: Path) -> None:
        model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
        processor.save_pretrained(folder)

    return Artifact(model.num_parameters(), save)


def _as_vit(model: PreTrainedModel, processor: ImageProcessor) -> Artifact:
    return _as_stock(as_vit(model, image_size=processor.crop_size["height"]), processor)


def _as_timm(model: PreTrainedModel, processor: ImageProcessor) -> Artifact:
    as_timm(model, processor)  # raises before anything is written
    return Artifact(model.num_parameters(), partial(save_as_timm, model, processor=processor), timm_hints)


def _as_onnx(model: PreTrainedModel, processor: ImageProcessor, options: OnnxOptions) -> Artifact:
    write_graph = as_onnx(model, processor, options)

    def save(folder: Path) -> None:
        write_graph(folder)
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)

    image = (model.config.num_channels, processor.crop_size["height"], processor.crop_size["width"])
    hints = onnx_hints(image, options.onnx_batch, options.onnx_dtype == "float16")
    return Artifact(model.num_parameters(), save, lambda name: hints)
