"""The model that a warm start begins with: where it is and of what kind, before any weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import PreTrainedConfig

from ..locations import looks_local, shown_name
from ..models.configuration_poa import PoaConfig
from ..models.elastic_config import ElasticConfigMixin
from ..models.saved import load_saved_config
from ..models.saved_files import read_config_fields, saved_folder
from ..runs.checkpoints import checkpoints_with_model
from ..runs.layout import CONFIG
from ..runs.load import resolve_run
from .refusals import unsupported
from .stock import elastic_types

# The part of models for dense prediction that is a model of another type: their weights and, with _config, fields.
_BACKBONE = "backbone"
_WEIGHT_FILES = (".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True)
class Source:
    """A model to start from.

    Attributes:
        name: What messages and records call it: a Hub id, or the last part of a path.
        kind: `stock` for a checkpoint of a stock model or an elastic backbone, `run` for student, teacher and heads of
            a pre-training run, `official` for a file of the authors'.
        location: Folder, file or Hub id.
        config: Configuration of the stock model or of the run's backbone; None for a file, which has none.
        run_config: Configuration of the whole run, if it is one.
        part: The part of the saved model that it is, such as `backbone` of a model for depth; None for all of it.
    """

    name: str
    kind: Literal["stock", "run", "official"]
    location: str | Path
    config: PreTrainedConfig | None = None
    run_config: PoaConfig | None = None
    part: str | None = None

    @property
    def backbone_config(self) -> PreTrainedConfig:
        """The backbone's configuration; reading it raises a ValueError for a file, which has none."""
        if self.config is None:
            raise ValueError(f"{self.name} is a file without a configuration: give the one that it was trained with.")
        return self.config


def find_source(source: str | Path) -> Source:
    """Find out what kind of model a path or Hub id holds.

    Raises:
        ValueError: If it holds nothing, cannot be read, or is a model that no elastic family can hold.
    """
    path = Path(source).expanduser()
    text = str(source).strip()
    if path.is_file():
        return Source(shown_name(path), "official", path)
    if text and path.is_dir():
        if not (path / CONFIG).exists() and not checkpoints_with_model(path):
            raise ValueError(f"{source} holds neither a model ({CONFIG}) nor a run's checkpoints.")
        return _read_config(shown_name(path), resolve_run(path))
    if not text or looks_local(text) or path.suffix in _WEIGHT_FILES:
        raise ValueError(
            f"There is nothing at {str(source)!r} to start from: give a model's folder or Hub id, a run, or a file of "
            "the authors'."
        )
    return _read_config(text, text)


def _read_config(name: str, location: str | Path) -> Source:
    folder = saved_folder(location)
    fields = read_config_fields(folder, name)
    types = [PoaConfig.model_type, *elastic_types()]
    if (model_type := fields.get("model_type")) not in types:
        inner = fields.get(f"{_BACKBONE}_config")
        if not model_type or not isinstance(inner, dict) or inner.get("model_type") not in types:
            raise ValueError(unsupported(name, fields))
        return Source(name, "stock", folder, load_saved_config(folder, name, _BACKBONE), part=_BACKBONE)
    config = load_saved_config(folder, name)
    if isinstance(config, PoaConfig):
        return Source(name, "run", folder, config.backbone_config, config)
    return Source(name, "stock", folder, config)


def is_in_order(source: Source) -> bool:
    """Whether the units of a source have an order that matters: that of a model that holds smaller ones already."""
    return source.kind == "official" or isinstance(source.config, ElasticConfigMixin)
