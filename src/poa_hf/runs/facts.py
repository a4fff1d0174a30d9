"""Facts about a run, as written in its folder: the only reader of it for cards, reports and selection."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..data.dataset_list import read_datasets, shares_of
from ..data.sources import TEXTURES
from ..elastic import ElasticSpace
from ..formatting import enumerated
from ..locations import is_repo_id
from ..models.configuration_poa import PoaConfig
from ..models.elastic_config import ElasticConfigMixin, elastic_config
from ..models.from_fields import model_config, read_model_section
from ..models.saved import load_saved_config
from ..yaml_files import parse_yaml
from .checkpoints import checkpoints
from .checksums import first_difference, has_checksums
from .comparison import Comparison, compare
from .evaluations import Evaluation, load_evaluations
from .json_lines import read_lines
from .layout import CONFIG, COUNTS, RunFolder
from .load import model_step, resolve_run
from .training_time import ComputePart, read_compute


@dataclass(frozen=True)
class DatasetShare:
    """One of several datasets that a run was trained on.

    Args:
        name: Its Hub id, the last part of a folder's path, or "textures".
        share: Its share of all images, in words.
        id: Its Hub id, if it is on the Hub.
    """

    name: str
    share: str
    id: str | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.share})"


@dataclass(frozen=True)
class RunFacts:
    """What a run has written down. Facts that are not known are None or empty.

    Args:
        config: The configuration of the model: a `PoaConfig`, or that of an elastic backbone without heads.
        name: What the user calls the run, for commands: a path or a Hub id.
        folder: The run's folder.
        model: The folder of the model: the run's, or that of a checkpoint.
        no_model: Why the run has no model, as one sentence; empty if it has one.
        steps: The step of the model.
        batch_size: Images per step, over all processes.
        arguments: The trainer's arguments, by the names of `PoaTrainingArguments`.
        recipe: The resolved recipe, as in config.yaml.
        dataset: The name of the training images: a Hub id, the last part of a folder's path, or "textures".
        dataset_id: The Hub id of the training images.
        dataset_config: The configuration of the dataset.
        dataset_split: Its split.
        datasets: The datasets of the training images, if they are several; `dataset` then names all of them.
        compute: Devices and times of all steps; empty if those of some steps are not known.
        evaluations: The records of evaluations, of all steps.
        no_evaluations: Why the records cannot be read, as one sentence; empty if they can.
    """

    config: PreTrainedConfig | None = None
    name: str = ""
    folder: RunFolder | None = None
    model: Path | None = None
    no_model: str = ""
    steps: int | None = None
    batch_size: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    dataset_id: str | None = None
    dataset_config: str | None = None
    dataset_split: str | None = None
    datasets: tuple[DatasetShare, ...] = ()
    compute: tuple[ComputePart, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    no_evaluations: str = ""

    @classmethod
    def read(cls, run: str | Path, config: PreTrainedConfig | None = None) -> RunFacts:
        """Read everything that a run has written down, except weights.

        Args:
            run: The output_dir of a run, one of its checkpoints, any saved elastic model, or the Hub id of a supernet.
            config: The configuration of the model, if it is at hand; read from the model's folder by default.

        Raises:
            ValueError: If there is neither a model nor a log nor a recipe, or the model's configuration is damaged.
        """
        model, no_model = None, ""
        try:
            model = resolve_run(run)
        except ValueError as error:
            if not Path(run).is_dir():
                raise
            no_model = str(error)
        if model is not None and has_checksums(model):
            if difference := first_difference(model, thorough=False, only={CONFIG}):
                raise ValueError(f"The model in {model} is damaged ({difference}): restore the file from a copy.")
        folder = RunFolder.containing(model or run)
        recipe = _with_names(_read_mapping(folder.recipe, parse_yaml))
        if config is None and model is not None:
            config = load_saved_config(model)
        elif config is None and recipe:
            config = _config_of_recipe(folder.recipe)
        elif config is None and not read_lines(folder.metrics):
            raise ValueError(f"{run} holds neither a model nor a run's log: give the output_dir of a run.")
        steps = None if model is None else model_step(model)
        compute = None if model is None else read_compute(model)
        dataset, datasets = recipe.get("dataset_name"), _shares(recipe)
        evaluations, no_evaluations = _read_evaluations(folder)
        return cls(
            config=config,
            name=str(run),
            folder=folder,
            model=model,
            no_model=no_model,
            steps=steps,
            batch_size=compute.global_batch_size if compute else _saved_batch_size(model, folder),
            arguments=_read_mapping(folder.training_arguments, json.loads),
            recipe=recipe,
            dataset=enumerated(datasets) if datasets else _shown_dataset(dataset),
            dataset_id=dataset if _is_on_hub(dataset) else None,
            dataset_config=recipe.get("dataset_config_name"),
            dataset_split=None if datasets or dataset == TEXTURES else recipe.get("dataset_split"),
            datasets=datasets,
            compute=tuple(compute.parts) if compute and compute.complete and compute.step == steps else (),
            evaluations=evaluations,
            no_evaluations=no_evaluations,
        )

    @property
    def backbone(self) -> ElasticConfigMixin:
        """The configuration of the elastic backbone. ValueError if it is not known, or has one size only."""
        if self.config is None:
            raise ValueError(self.no_model)
        try:
            return elastic_config(self.config)
        except ValueError as error:
            if not self.name:
                raise
            raise ValueError(
                f"{self.name} is a checkpoint of one size ({self.config.model_type}): give the output_dir of a run."
            ) from error

    @property
    def space(self) -> ElasticSpace:
        """All sizes of the run. ValueError if the configuration is not known, or has one size only."""
        return self.backbone.space

    @property
    def started_from(self) -> str | None:
        """The Hub id or file name of the pre-trained model that the run began with, if it did."""
        return self.config.warm_started_from if isinstance(self.config, PoaConfig) else None

    @property
    def distilled_from(self) -> str | None:
        """The Hub id or name of the foreign teacher that the run learnt from, if it did."""
        fields = self.config.distillation if isinstance(self.config, PoaConfig) else None
        return None if fields is None else fields.get("teacher")

    @property
    def units_ordered_on(self) -> int | None:
        """By how many images' features the units were put in order of importance; None if they were not."""
        return self.config.units_ordered_on if isinstance(self.config, PoaConfig) else None

    @property
    def is_only_ordered(self) -> bool:
        """Whether the model is another one with its units in order, and was not trained further (`poa order`)."""
        return self.units_ordered_on is not None and self.steps is None and not self.arguments

    @property
    def images_seen(self) -> int | None:
        """How many images the model has been trained on, each counted as often as it was used."""
        return None if self.steps is None or self.batch_size is None else self.steps * self.batch_size

    @property
    def peak_learning_rate(self) -> float | None:
        """The learning rate after the warm-up, scaled by the square root of the batch size."""
        rate = self.arguments.get("learning_rate")
        if self.batch_size is None or not isinstance(rate, int | float):
            return None
        return rate * math.sqrt(self.batch_size / 1024)

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, read at the first use."""
        return [] if self.folder is None else read_lines(self.folder.metrics)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The records in sets that can be compared, in the order in which they count (see `compare`)."""
        return [] if self.config is None else compare(self.evaluations, self.space, self.steps)

    def command(self, name: str, *options: str) -> str:
        """A command of `poa` on this run, as typed in a shell."""
        return shlex.join(["poa", name, self.name, *options])


def _read_evaluations(folder: RunFolder) -> tuple[tuple[Evaluation, ...], str]:
    """The records of a run, and why they cannot be read, if so."""
    try:
        return tuple(load_evaluations(folder.evaluations)), ""
    except ValueError as error:
        return (), str(error)


def _read_mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """The content of a file; empty if it does not exist or is broken, since a card or report then says less."""
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _with_names(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe without names of datasets, configurations and splits that are no text, as nobody can be told them."""
    names = [f"{prefix}dataset_{what}" for prefix in ("", "eval_") for what in ("name", "config_name", "split")]
    return {key: value for key, value in recipe.items() if key not in names or isinstance(value, str)}


def _config_of_recipe(path: Path) -> PreTrainedConfig | None:
    """The configuration that a recipe describes; None if it is of another version (loading the model reports that)."""
    try:
        return model_config(read_model_section(path))
    except (ValueError, TypeError):
        return None


def _is_on_hub(name: Any) -> bool:
    return is_repo_id(name) and not Path(name).exists()


def _shown_dataset(name: Any) -> str | None:
    """The name of a dataset; for a folder only the last part of its path."""
    if not isinstance(name, str) or not name:
        return None
    return name if name == TEXTURES or _is_on_hub(name) else Path(name).name


def _shares(recipe: dict[str, Any]) -> tuple[DatasetShare, ...]:
    """The datasets that a recipe lists; none if it names one dataset only, or lists them wrongly."""
    if not recipe.get("datasets"):
        return ()
    try:
        listed = read_datasets(recipe["datasets"])
    except (ValueError, TypeError, AttributeError):
        return ()
    ids = [each["dataset_name"] if _is_on_hub(each["dataset_name"]) else None for each in listed]
    return tuple(DatasetShare(*each, id) for each, id in zip(shares_of(listed), ids, strict=True))


def _saved_batch_size(model: Path | None, folder: RunFolder) -> int | None:
    """The batch size that a checkpoint has written down."""
    for checkpoint in (*([model] if model else []), *reversed(checkpoints(folder.path))):
        size = _read_mapping(checkpoint / COUNTS, json.loads).get("global_batch_size")
        if size and isinstance(size, int):
            return size
    return None
