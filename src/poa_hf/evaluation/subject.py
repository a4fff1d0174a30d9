"""What is evaluated: the teacher of a run in any of its sizes, or a stock checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..data.processor import evaluation_processor
from ..elastic import SubNetwork
from ..models.elastic_model import ElasticModelMixin
from ..runs.hub import is_supernet_on_hub
from ..runs.layout import CONFIG, RunFolder
from ..runs.load import load_run, model_step, resolve_run, run_processor
from .features import pooled_features

ONE_SIZE = "-"


@dataclass
class Subject:
    """A model with the image processor it is evaluated with; of an elastic one every size can be.

    `name` is what records call it. `results` is the file its records go to, None where nothing says which.
    """

    name: str
    model: PreTrainedModel
    processor: Any
    step: int | None = None
    results: Path | None = None

    def sizes(self, wanted: str | Sequence[str | SubNetwork] | None = None) -> list[str]:
        """The sizes meant by a list, by names and sizes with commas, by "named" (the default) or by "all".

        Raises:
            ValueError: for sizes outside the model's space, or any size of a model that has only one.
        """
        if not isinstance(self.model, ElasticModelMixin):
            if wanted not in (None, ONE_SIZE, [ONE_SIZE]):
                raise ValueError(f"{self.name} is a checkpoint of one size: leave out --sizes.")
            return [ONE_SIZE]
        space = self.model.config.space
        if wanted in (None, "named"):
            wanted = list(space.named.values()) or [space.smallest, space.full]
        elif wanted == "all":
            wanted = list(space)
        elif isinstance(wanted, str):
            wanted = [size.strip() for size in wanted.split(",")]
        if not wanted:
            raise ValueError("There is no size to evaluate: give at least one.")
        return list(dict.fromkeys(str(space.resolve(size)) for size in wanted))

    def callables(self, sizes: Sequence[str]) -> dict[str, Callable]:
        """By size, what gives the outputs for `pixel_values`, on the model's weights as they are at the call."""
        if not isinstance(self.model, ElasticModelMixin):
            return {ONE_SIZE: self.model}
        # Sliced at each call: the slices of all sizes at once could need many times the model's memory.
        return {size: lambda pixel_values, size=size: self.model.sliced(size)(pixel_values) for size in sizes}

    def widths(self, sizes: Sequence[str], device: torch.device) -> dict[str, int]:
        """How many numbers the features of each size have.

        Raises:
            ValueError: if the model gives no features of what its image processor makes.
        """
        pixel_values = self.processor([Image.new("RGB", (64, 64))], return_tensors="pt").pixel_values.to(device)
        try:
            with torch.no_grad():
                return {
                    size: pooled_features(model(pixel_values=pixel_values)).shape[1]
                    for size, model in self.callables(sizes).items()
                }
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{self.name} gives no features of images ({_sentence(error)}): use a vision model."
            ) from error


def load_subject(source: str | Path) -> Subject:
    """A run, one of its checkpoints or any saved `PoaForPreTraining`, of which the teacher is taken; or a stock
    checkpoint. The last two as a folder or on the Hub.

    Raises:
        ValueError: if there is no such thing, it is not whole, or has no image processor.
    """
    path = Path(source)
    on_hub = not path.is_dir() and is_supernet_on_hub(path)
    config = path / CONFIG
    if not on_hub and (not path.is_dir() or config.exists() and _model_type(config) != "poa"):
        return _load_stock(str(source), path)
    folder = resolve_run(path)
    model = load_run(path).teacher
    processor = run_processor(path)
    if processor is None:
        processor = evaluation_processor(model.config.image_size)
    if on_hub:
        return Subject(str(source), model, processor, model_step(folder))
    results = RunFolder.containing(path).evaluations
    return Subject(results.parent.name, model, processor, model_step(folder), results)


def _load_stock(source: str, path: Path) -> Subject:
    local = path.is_dir()
    if not local and (source.startswith((".", "/", "~")) or source.count("/") > 1 or _lies_in_folder(path)):
        raise ValueError(f"{source} does not exist: give a run, one of its checkpoints, or a model's folder or Hub id.")
    try:
        model, missing = _auto_model(source)
        if missing and all(name.startswith("pooler.") for name in missing):
            # a `vit` saved without its pooler would get one of random weights, and features that mean nothing
            model, missing = _auto_model(source, add_pooling_layer=False)
    except (OSError, ValueError, RuntimeError) as error:
        where = "cannot be loaded" if local else "is neither a folder nor a model of the Hub that can be loaded"
        raise ValueError(f"{source} {where} ({_sentence(error)}): give a run or a checkpoint.") from error
    if missing:
        raise ValueError(f"{source} lacks {len(missing)} parameters ({missing[0]}, ...): it is not a whole checkpoint.")
    try:
        processor = AutoImageProcessor.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"{source} has no image processor that can be loaded ({_sentence(error)}): save one beside the model."
        ) from error
    if local:
        return Subject(path.resolve().name, model.eval(), processor, results=RunFolder.containing(path).evaluations)
    return Subject(source, model.eval(), processor)


def _auto_model(source: str, **options) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the parameters that its checkpoint lacks."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would print a table of what is missing, which we tell in words
    try:
        model, report = AutoModel.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **options)
    finally:
        transformers_logging.set_verbosity(verbosity)
    return model, sorted(report["missing_keys"])


def _lies_in_folder(path: Path) -> bool:
    return path.parent != Path(".") and path.parent.is_dir()


def _model_type(config: Path) -> str | None:
    try:
        return json.loads(config.read_text()).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{config} can't be read ({error}): it is no model's configuration.") from error


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
