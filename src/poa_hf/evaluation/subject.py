"""What is evaluated: the teacher of a run in any of its sizes, or a stock checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from ..data.decoding import open_image
from ..data.processor import decoding_of, prepared_images, usual_processor
from ..formatting import one_line
from ..locations import looks_local
from ..models.elastic_config import is_hierarchical
from ..models.elastic_model import ElasticModelMixin
from ..models.saved import load_saved_model, load_saved_processor
from ..models.saved_files import read_config_fields
from ..runs.hub import is_supernet_on_hub
from ..runs.layout import CONFIG, RunFolder
from ..runs.load import load_run, model_step, resolve_run, run_processor
from ..sub_network import SubNetwork
from .alterations.alteration import ModelInput
from .data.sources import SeveralSources, Source, training_source
from .features import in_precision_of, pooled_features

ONE_SIZE = "-"  # the size that records have of a model with only one


@dataclass
class Subject:
    """A model to evaluate, with its image processor. Every size of an elastic model can be evaluated.

    Args:
        name: What records call the model.
        model: An elastic model, or any vision model of transformers.
        processor: The image processor whose images the model gets.
        step: The training step of the model, if known.
        results: The file that its records are saved in; None for a model on the Hub.
        trained_on: The images of its pre-training, if known.
    """

    name: str
    model: PreTrainedModel
    processor: BaseImageProcessor
    step: int | None = None
    results: Path | None = None
    trained_on: Source | SeveralSources | None = None

    def untrained(self, sizes: Sequence[str]) -> str:
        """Return a sentence on which of these sizes were not trained by themselves; an empty text if all were."""
        if not isinstance(self.model, ElasticModelMixin):
            return ""
        return self.model.config.space.untrained(map(SubNetwork.parse, sizes))

    def sizes(self, wanted: str | Sequence[str | SubNetwork] | None = None) -> list[str]:
        """Return the sizes that are asked for, each once.

        Args:
            wanted: Names and sizes, as a list or with commas, "named" (the default) or "all".

        Raises:
            ValueError: For sizes outside the model's space, or any size of a model that has only one.
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

    def callables(self, sizes: Sequence[str]) -> Mapping[str, Callable[..., Any]]:
        """Return, by size, a function from `pixel_values` to the outputs of that size with the current weights.

        The images may be in any precision, whatever that of the model.
        """
        model = self.model
        if not isinstance(model, ElasticModelMixin):
            return {ONE_SIZE: lambda pixel_values: model(pixel_values=in_precision_of(model, pixel_values))}
        return Sizes(model, sizes)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the model gets, in pixels."""
        height, width = self.black_image.shape[2:]
        return height, width

    @property
    def input(self) -> ModelInput:
        """What the images are that the model gets."""
        height, width = self.image_size
        config: Any = getattr(self.model, "config", None)
        patch = None if is_hierarchical(config) else getattr(config, "patch_size", None)
        sides = {*patch} if isinstance(patch, list | tuple) else {patch}
        return ModelInput(height, width, sides.pop() if len(sides) == 1 else None)

    @property
    def black_image(self) -> Tensor:
        """A black image as the model takes it, (1, C, H, W), to try something out on."""
        decoding = decoding_of(self.processor)
        black = np.zeros((64, 64, decoding["num_channels"]), dtype=np.uint8)
        return prepared_images(self.processor, [open_image(black, **decoding)])

    def widths(self, sizes: Sequence[str], device: torch.device) -> dict[str, int]:
        """Return the number of channels of each size's features.

        Raises:
            ValueError: If the model gives no features of what its image processor makes.
        """
        pixel_values = self.black_image.to(device)
        try:
            with torch.no_grad():
                return {
                    size: pooled_features(model(pixel_values=pixel_values)).shape[1]
                    for size, model in self.callables(sizes).items()
                }
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{self.name} gives no features of images ({one_line(error)}): use a vision model."
            ) from error


class Sizes(Mapping[str, Callable[..., Any]]):
    """Sizes of an elastic model, each a function from `pixel_values` to its output with the current weights.

    Args:
        model: The model.
        names: The sizes, as texts.
    """

    def __init__(self, model: ElasticModelMixin, names: Sequence[str]):
        self.model, self.names = model, names

    def __getitem__(self, name: str) -> Callable[..., Any]:
        # Sliced at each call: the slices of all sizes at once could need many times the model's memory.
        return lambda pixel_values: self.model.sliced(name)(in_precision_of(self.model, pixel_values))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def outputs(self, pixel_values: Tensor) -> Iterator[tuple[str, Any]]:
        """Yield the output of each size, in any order; what several have in common is computed once."""
        for size, output in self.model.outputs_of(self.names, in_precision_of(self.model, pixel_values)):
            yield str(size), output


def load_subject(source: str | Path) -> Subject:
    """Load a model to evaluate.

    Args:
        source: A run, one of its checkpoints or any saved `PoaForPreTraining`, whose teacher is evaluated; or a
            stock checkpoint. The last two can also be on the Hub.

    Raises:
        ValueError: If it does not exist, is incomplete, or has no image processor.
    """
    path = Path(source).expanduser()
    on_hub = not path.is_dir() and is_supernet_on_hub(path)
    config = path / CONFIG
    is_stock = config.exists() and read_config_fields(path, path).get("model_type") != "poa"
    if not on_hub and (is_stock or not path.is_dir()):
        return _load_stock(str(path if path.exists() else source))
    folder = resolve_run(path)
    model = load_run(path).teacher
    processor = run_processor(path)
    if processor is None:
        processor = usual_processor(model.config)
    if on_hub:
        return Subject(str(source), model, processor, model_step(folder), None, training_source(RunFolder(folder)))
    run = RunFolder.containing(path)
    results = run.evaluations
    return Subject(results.parent.name, model, processor, model_step(folder), results, training_source(run))


def _load_stock(source: str) -> Subject:
    path = Path(source)
    if not path.exists() and looks_local(source):
        raise ValueError(f"{source} does not exist: give a run, one of its checkpoints, or a model's folder or Hub id.")
    model, missing, _ = load_saved_model(AutoModel, source)
    if missing and all(name.startswith("pooler.") for name in missing):
        # a `vit` saved without its pooler would get one with random weights, and features that mean nothing
        model, missing, _ = load_saved_model(AutoModel, source, add_pooling_layer=False)
    if missing:
        raise ValueError(
            f"{source} lacks {len(missing)} parameters ({missing[0]}, ...): give a checkpoint that is complete."
        )
    processor = load_saved_processor(source)
    if path.is_dir():
        results = RunFolder.containing(path).evaluations
        return Subject(path.resolve().name, model.eval(), processor, results=results)
    return Subject(source, model.eval(), processor)
