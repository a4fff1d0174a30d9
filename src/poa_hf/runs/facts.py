"""What is known of a run, for its cards: from its configuration, its folder, and what its owner says of it."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ..data.sources import TEXTURES
from ..elastic import SubNetwork
from ..models.configuration_poa import PoaConfig
from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..publishing.card.metadata import check_license, is_hub_id, is_repo_id
from ..selection.costs import Costs, costs
from ..selection.select import Quality, quality_of
from .checkpoints import checkpoints
from .evaluations import Evaluation, load_evaluations
from .layout import RunFolder
from .load import model_step, resolve_run
from .training_time import ComputePart, read_compute

OWNER_FILE = "card.yaml"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OwnerFacts:
    """What no run knows, from `card.yaml` in its folder: the licence of the weights (an identifier of the Hub, or
    `other` with its name and link), the Hub id of the training images where the run read them from elsewhere, whom to
    ask, and a paragraph of Markdown about the model.

    Raises:
        ValueError: For a licence that the Hub does not know, or what is no Hub id or text.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    dataset: str | None = None
    contact: str | None = None
    about: str | None = None

    def __post_init__(self):
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and not (isinstance(value, str) and value.strip()):
                raise ValueError(f"{each.name} {value!r} is no text: write one, or leave it out.")
        check_license(self.license, self.license_name, self.license_link)
        if self.dataset is not None and not is_hub_id(self.dataset):
            raise ValueError(f"dataset {self.dataset!r} is no Hub id: write it as namespace/name.")

    @classmethod
    def read(cls, folder: Path) -> OwnerFacts:
        """Those of a run's folder; nothing where it has no such file."""
        path = folder / OWNER_FILE
        if not path.exists():
            return cls()
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path} can't be read ({' '.join(str(error).split())}): mend it or delete it.") from error
        known = [each.name for each in fields(cls)]
        if not isinstance(content, dict) or not content.keys() <= set(known):
            raise ValueError(f"{path} must hold `key: value` lines with keys of {', '.join(known)}.")
        try:
            return cls(**content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run; None or empty is what is not.

    Args:
        folder: The model's, the run's own or a checkpoint's, which an extraction must not overwrite.
        dataset: What the training images were called: a Hub id, the name of a folder, or "textures".
        dataset_id: The Hub id of the training images, where they have one.
        steps: Of the model that is described.
        batch_size: Images per step, of all processes.
        arguments: Those of the trainer, by the names of `PoaTrainingArguments`.
        compute: Devices and times of all steps; empty where those of some are not known.
        evaluations: Of this model, not of an earlier step.
    """

    config: PoaConfig
    folder: Path | None = None
    dataset: str | None = None
    dataset_id: str | None = None
    dataset_config: str | None = None
    dataset_split: str | None = None
    steps: int | None = None
    batch_size: int | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    compute: tuple[ComputePart, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    owner: OwnerFacts = OwnerFacts()

    @property
    def started_from(self) -> str | None:
        """The Hub id or file name of the pre-trained model that the run began with, if it did."""
        return self.config.warm_started_from

    @classmethod
    def of(
        cls, model_or_config: PoaForPreTraining | PoaConfig, run: str | Path | None = None, **owner: str | None
    ) -> RunFacts:
        """The facts of the model in `run`: output_dir of a run, one of its checkpoints or any saved
        `PoaForPreTraining`. Without one only the configuration is known.

        Args:
            owner: Fields of `OwnerFacts` that go before those of the run's `card.yaml`; None leaves a field as it is.

        Raises:
            ValueError: For a folder without a model, and for what its owner says where that can't be read.
        """
        config = getattr(model_or_config, "config", model_or_config)
        given = {name: value for name, value in owner.items() if value is not None}
        if run is None or not Path(run).is_dir():
            return cls(config, owner=OwnerFacts(**given))
        model = resolve_run(run)
        folder = RunFolder.containing(model).path
        said = OwnerFacts.read(folder)
        if "license" in given:  # a licence is replaced as a whole
            given = {"license_name": None, "license_link": None} | given
        said = OwnerFacts(**(vars(said) | given))
        steps = model_step(model)
        compute = read_compute(model)
        recipe = _mapping(folder / "config.yaml", yaml.safe_load)
        name = recipe.get("dataset_name")
        return cls(
            config,
            folder=model,
            dataset=said.dataset or _shown(name),
            dataset_id=said.dataset or (name if _on_hub(name) else None),
            dataset_config=None if said.dataset else recipe.get("dataset_config_name"),
            dataset_split=None if said.dataset or name == TEXTURES else recipe.get("dataset_split"),
            steps=steps,
            batch_size=compute.global_batch_size if compute else _saved_batch_size(model, folder),
            arguments=_mapping(folder / "training_args.json", json.loads),
            compute=tuple(compute.parts) if compute and compute.complete and compute.step == steps else (),
            evaluations=_evaluations(folder, config, steps),
            owner=said,
        )

    @property
    def images_seen(self) -> int | None:
        """How many images the model has been trained on, each as often as it came."""
        return None if self.steps is None or self.batch_size is None else self.steps * self.batch_size

    @property
    def peak_learning_rate(self) -> float | None:
        rate = self.arguments.get("learning_rate")
        return None if rate is None or self.batch_size is None else rate * math.sqrt(self.batch_size / 1024)

    @cached_property
    def costs(self) -> dict[SubNetwork, Costs]:
        """Of every size, counted at the first call (seconds for hundreds), which must not be while another thread makes
        models."""
        return costs(self.config)

    @cached_property
    def quality(self) -> Quality:
        """What was measured of the most sizes: k-NN, or else by a linear probe."""
        space = self.config.backbone_config.space
        found = [quality_of(self.evaluations, space, task) for task in ("knn", "linear")]
        return next((quality for quality in found if quality.values), Quality())

    def evaluations_of(self, sub_network: SubNetwork) -> list[Evaluation]:
        return [record for record in self.evaluations if record.size == str(sub_network)]


def _mapping(path: Path, parse) -> dict[str, Any]:
    """A file's content; empty where it is not there or broken: a card then says less."""
    try:
        content = parse(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def _on_hub(name: Any) -> bool:
    return is_repo_id(name) and not Path(name).exists()


def _shown(name: Any) -> str | None:
    """A folder by its own name, as where it lies is nobody's business."""
    if not isinstance(name, str) or not name:
        return None
    return name if name == TEXTURES or _on_hub(name) else Path(name).name


def _saved_batch_size(model: Path, folder: Path) -> int | None:
    for checkpoint in (model, *reversed(checkpoints(folder))):
        if size := _mapping(checkpoint / "counts.json", json.loads).get("global_batch_size"):
            return size
    return None


def _evaluations(folder: Path, config: PoaConfig, steps: int | None) -> tuple[Evaluation, ...]:
    """Those of this model, of sizes that it has."""
    try:
        records = load_evaluations(folder)
    except ValueError:
        logger.warning("%s can't be read as evaluations: cards give no results.", RunFolder(folder).evaluations)
        return ()
    sizes = set(map(str, config.backbone_config.space))
    return tuple(
        record
        for record in records
        if record.size in sizes and record.step in (None, steps) and math.isfinite(record.value)
    )
