"""A run from a YAML file and command-line overrides, every key checked before any work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args, get_type_hints

import yaml
from transformers import HfArgumentParser

from ..data.sources import TEXTURES
from ..models.configuration_poa import PoaConfig
from ..models.from_fields import as_numbers, check_key, model_config, own_fields
from ..runs.checkpoints import find_checkpoint
from ..training.arguments import PoaTrainingArguments
from ..warm_start.defaults import changed_arguments, recorded_name, with_source
from ..warm_start.source import find_source
from ..yaml_files import read_mapping
from .parser import refuse


@dataclass
class ModelArguments:
    """What the model starts from."""

    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Start from a pre-trained model: folder or Hub id of a dinov2, vit, swin or gn_resnet checkpoint, "
            "a run, or a file of the authors'. Its architecture is the full size."
        },
    )


@dataclass
class DataArguments:
    """Where the images come from."""

    dataset_name: str = field(
        default="textures",
        metadata={"help": "Hub id, local folder (parquet, WebDataset, image files), or `textures` (built in)."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split to train on."})
    streaming: bool = field(default=True, metadata={"help": "Stream instead of downloading and converting first."})


@dataclass
class EvaluationArguments:
    """Measuring the teacher by k-NN while it trains, on labelled images."""

    eval_steps: int | None = field(default=None, metadata={"help": "Steps between evaluations; none if not given."})
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Labelled dataset; the one that is trained on if not given."}
    )
    eval_dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that dataset."})
    eval_train_split: str = field(default="train", metadata={"help": "Split whose labels vote."})
    eval_test_split: str | None = field(default=None, metadata={"help": "Split to classify; test or validation."})
    eval_sizes: str | None = field(
        default=None, metadata={"help": "Sizes with commas; the smallest, a middle and the full one if not given."}
    )
    eval_k: int = field(default=20, metadata={"help": "Neighbours that vote."})
    eval_max_train_images: int | None = field(default=20_000, metadata={"help": "Images that vote at most."})
    eval_max_test_images: int | None = field(default=5_000, metadata={"help": "Images to classify at most."})

    def __post_init__(self):
        if self.eval_steps is not None and self.eval_steps < 1:
            raise ValueError(f"eval_steps is {self.eval_steps}: give at least 1, or leave it out.")


@dataclass
class Recipe:
    """A whole run: `model` is a `PoaConfig`. `checkpoint` is what it goes on from, if anything; then `init_from` is not
    read."""

    model: PoaConfig
    data: DataArguments
    training: PoaTrainingArguments
    evaluation: EvaluationArguments
    init_from: str | None = None
    checkpoint: Path | None = None

    def to_yaml(self) -> str:
        """The resolved recipe, which `--config` reads back."""
        backbone = self.model.backbone_config
        model = own_fields(self.model) | {"backbone_config": {"model_type": backbone.model_type} | own_fields(backbone)}
        flat = {
            name: value for part in (self.data, self.evaluation, self.training) for name, value in vars(part).items()
        }
        name = flat["dataset_name"]
        if name != TEXTURES and not name.startswith((".", "/", "~")) and Path(name).is_dir():
            flat["dataset_name"] = f"./{name}"  # from elsewhere it would look like a dataset of the Hub
        for once in ("overwrite_output_dir", "resume_from_checkpoint"):  # read back, they would act again
            del flat[once]
        start = {"init_from": self.init_from} if self.init_from else {}
        return yaml.safe_dump({**flat, **start, "model": model}, sort_keys=False)


def parse_recipe(argv: list[str], prog: str | None = None) -> Recipe:
    """Read `[--config FILE.yaml] [--key value ...]`; the command line wins.

    The file holds the fields of `DataArguments`, `EvaluationArguments` and `PoaTrainingArguments` at the top and those
    of `PoaConfig` under `model` (the elastic backbone's under `backbone_config`). On the command line the latter are
    written with dots, as in `--model.backbone_config.hidden_size 96`.

    With `init_from`, what is not given comes from the source: the backbone's full size, image normalisation, crops that
    fit its patches; and the schedules are a tenth of the published ones.

    Raises:
        ValueError: For an unknown key (with the nearest known one) or a value that does not fit.
    """
    parts = (ModelArguments, DataArguments, EvaluationArguments, PoaTrainingArguments)
    parser = HfArgumentParser(parts, prog=prog, allow_abbrev=False)
    parser.add_argument("--config", type=Path, help="YAML file with any of these and the model's, under `model`.")
    parser.error = refuse  # argparse would print all options first
    parser.epilog = "The model's own fields are given as --model.FIELD and --model.backbone_config.FIELD."
    content, argv = _config_file(_bare_resume(argv))
    model = content.pop("model", None) or {}
    backbone = model.get("backbone_config") or {} if isinstance(model, dict) else None
    if not isinstance(backbone, dict):
        raise ValueError("model and its backbone_config must hold `key: value` lines.")
    flat_fields = {f.name: f for part in parts for f in dataclasses.fields(part)}
    hints = {name: hint for part in parts for name, hint in get_type_hints(part).items()}
    nullable = {name for name, hint in hints.items() if type(None) in get_args(hint)}
    for key in content:
        check_key(key, {*flat_fields, "model"})
    argv, overrides = _split_model_overrides(argv)
    for path, value in overrides:
        _set(model, path, value)
    given = {arg[2:].partition("=")[0].replace("-", "_") for arg in argv if arg.startswith("--")} - {"help"}
    for key in given:
        check_key(key, {*flat_fields, *(f"no_{name}" for name in flat_fields), "config"}, "--")
    *parsed, _ = parser.parse_args_into_dataclasses([*argv, *_as_arguments(content, given)], look_for_args_file=False)
    for key in content:
        if content[key] is None and key not in given:
            if key not in nullable:
                raise ValueError(f"{key} is null: give it a value, or leave it out for the default.")
            setattr(next(part for part in parsed if hasattr(part, key)), key, None)
    start, data, evaluation, training = parsed
    if start.init_from is None:
        return Recipe(model=model_config(model), data=data, training=training, evaluation=evaluation)
    checkpoint = find_checkpoint(Path(training.output_dir), training.resume_from_checkpoint, overwrite=True)
    source = find_source(start.init_from if checkpoint is None else checkpoint)
    model["backbone_config"] = as_numbers(model.get("backbone_config") or {})
    config = model_config(with_source(model, source))
    config.warm_started_from = recorded_name(start.init_from, source, checkpoint)
    changed = changed_arguments(config, source, training, explicit={*given, *content})
    training = dataclasses.replace(training, **changed)
    return Recipe(config, data, training, evaluation, start.init_from, checkpoint)


def _bare_resume(argv: list[str]) -> list[str]:
    """`--resume_from_checkpoint` without a value means the last checkpoint."""
    result = []
    for argument, following in zip(argv, [*argv[1:], "--"], strict=False):
        result.append(argument)
        if argument == "--resume_from_checkpoint" and following.startswith("--"):
            result.append("true")
    return result


def _config_file(argv: list[str]) -> tuple[dict, list[str]]:
    """The content of the file after --config, and the other arguments."""
    rest, path = [], None
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config" or argument.startswith("--config="):
            path = argument.partition("=")[2] or next(arguments, None)
            if path is None:
                raise ValueError("--config needs the path of a YAML file.")
        else:
            rest.append(argument)
    if path is None:
        return {}, rest
    return read_mapping(path), rest


def _split_model_overrides(argv: list[str]) -> tuple[list[str], list[tuple[list[str], object]]]:
    rest, overrides = [], []
    arguments = iter(argv)
    for argument in arguments:
        if argument.startswith("--model."):
            key, equals, value = argument[len("--model.") :].partition("=")
            value = value if equals else next(arguments, None)
            if value is None:
                raise ValueError(f"{argument} needs a value.")
            overrides.append((key.split("."), yaml.safe_load(value)))
        else:
            rest.append(argument)
    return rest, overrides


def _set(model: dict, path: list[str], value) -> None:
    where = ".".join(["model", *path])
    for key in path[:-1]:
        model = model.setdefault(key, {}) if isinstance(model, dict) else None
    if not isinstance(model, dict):
        raise ValueError(f"{where} is not a known key: see poa pretrain --help.")
    if path == ["backbone_config"] and not isinstance(value, dict):
        raise ValueError(f"{where} holds fields of its own: give --{where}.FIELD.")
    model[path[-1]] = value


def _as_arguments(content: dict, given: set[str]) -> list[str]:
    """The file's values as the command line would give them, but for those that it gives itself."""
    arguments = []
    for key, value in content.items():
        if key in given or f"no_{key}" in given or value is None:
            continue
        if key == "report_to" and isinstance(value, list):
            value = ",".join(map(str, value))
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{key}", *(str(value) for value in values)]
    return arguments
