"""A run from a YAML file and command-line overrides, every key checked before any work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ..ranges import COUNT, Range, check_fields, check_given
from ..training.arguments import PoaTrainingArguments
from ..yaml_files import Section, located, read_mapping, yaml_text
from .configs import find_config
from .data_arguments import DataArguments
from .fields import add_fields, read_mapping_values
from .keys import check_keys, place_in_model, replaced_by
from .other_names import instead_of
from .overrides import set_field, split_model_overrides
from .parser import CommandParser

if TYPE_CHECKING:
    from ..models.configuration_poa import PoaConfig


@dataclass
class ModelArguments:
    """What the model starts and learns from."""

    ranges: ClassVar[dict[str, Range]] = {"order_images": COUNT}

    # Start
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Start from a pre-trained model: folder or Hub id of a dinov2, dinov2_with_registers, dinov3_vit, "
            "vit, vit_mae, vit_msn, deit, swin or gn_resnet checkpoint, a run, or a file of the authors'. Its "
            "architecture is the full size."
        },
    )
    order_units: bool | None = field(
        default=None,
        metadata={
            "help": "Whether to put channels, heads and hidden units in order of importance before sub-networks are "
            "trained, at elastic_start_step; on by default where init_from is a model of one size."
        },
    )
    order_images: int = field(
        default=2048, metadata={"help": "Training images by whose features importance is estimated."}
    )
    foreign_teacher: str | None = field(
        default=None,
        metadata={
            "help": "Learn from this frozen model instead of the moving average of the student: folder or Hub id of "
            "any model with features of images, or a run."
        },
    )
    gram_teacher: str | None = field(
        default=None,
        metadata={
            "help": "Anchor the similarities of patches to those of this frozen model, with --model.gram_weight: "
            "folder or Hub id of a model or run. By default, the run's own teacher at step 0."
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_given(self)


@dataclass
class EvaluationArguments:
    """Measuring the teacher by k-NN while it trains, on labelled images."""

    ranges: ClassVar[dict[str, Range]] = {
        "eval_steps": COUNT,
        "eval_k": COUNT,
        "eval_max_train_images": COUNT,
        "eval_max_test_images": COUNT,
        "eval_holdout": Range(0, 1, above=True, below=True),
    }

    # Evaluation while training
    eval_steps: int | None = field(default=None, metadata={"help": "Steps between evaluations; none if not given."})
    eval_dataset_name: str | None = field(
        default=None, metadata={"help": "Labelled dataset; the one that is trained on if not given."}
    )
    eval_dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that dataset."})
    eval_train_split: str = field(default="train", metadata={"help": "Split whose labels vote."})
    eval_test_split: str | None = field(default=None, metadata={"help": "Split to classify; test or validation."})
    eval_holdout: float | None = field(
        default=None,
        metadata={"help": "Share of the labelled split to classify, held out at random by class, such as 0.2."},
    )
    eval_sizes: list[str] | None = field(
        default=None, metadata={"help": "Sizes to measure; the smallest, a middle and the full one if not given."}
    )
    eval_k: int = field(default=20, metadata={"help": "Neighbours that vote."})
    eval_max_train_images: int | None = field(default=20_000, metadata={"help": "Largest number of images that vote."})
    eval_max_test_images: int | None = field(default=5_000, metadata={"help": "Largest number of images to classify."})

    def __post_init__(self) -> None:
        check_fields(self)
        check_given(self)


@dataclass
class Recipe:
    """A whole run.

    Attributes:
        model: Configuration of the model.
        data: Where the images come from.
        training: Arguments of the training.
        evaluation: Evaluation during training.
        init_from: Folder, file or Hub id of the model to start from.
        checkpoint: The checkpoint that a run with `init_from` resumes from; then `init_from` is not read.
        foreign_teacher: Folder or Hub id of the frozen model to learn from.
        gram_teacher: Folder or Hub id of the Gram teacher; None for the run's own teacher at step 0.
        order_units: Whether units are put in order of importance before sub-networks are trained.
        order_images: Images by whose features it is estimated.
    """

    model: PoaConfig
    data: DataArguments
    training: PoaTrainingArguments
    evaluation: EvaluationArguments
    init_from: str | None = None
    checkpoint: Path | None = None
    foreign_teacher: str | None = None
    gram_teacher: str | None = None
    order_units: bool = False
    order_images: int = 2048

    def to_yaml(self) -> str:
        """Return the resolved recipe as a file that `--config` reads back."""
        from ..data.sources import TEXTURES
        from ..models.from_fields import own_fields

        backbone = self.model.backbone_config
        model = own_fields(self.model) | {"backbone_config": {"model_type": backbone.model_type} | own_fields(backbone)}
        flat = {**vars(self.data), **vars(self.evaluation), **self.training.without_secrets()}
        if flat["datasets"] is not None:
            flat["datasets"] = [dict(each) for each in flat["datasets"]]
            del flat["dataset_name"]
        for named in (flat, *(flat["datasets"] or ())):
            name = named.get("dataset_name", TEXTURES)
            if name != TEXTURES and not name.startswith((".", "/", "~")) and Path(name).is_dir():
                named["dataset_name"] = f"./{name}"  # from elsewhere it would look like a dataset of the Hub
        for once in ("overwrite_output_dir", "resume_from_checkpoint"):  # read back, they would act again
            del flat[once]
        models = ("init_from", "foreign_teacher", "gram_teacher")
        start = {name: getattr(self, name) for name in models if getattr(self, name)}
        if self.init_from or self.order_units:  # from elsewhere, the default might be another
            start |= {"order_units": self.order_units, "order_images": self.order_images}
        return yaml_text({**flat, **start, "model": model})


_PRETRAIN = "Pre-train an elastic model on images without labels."
_Arguments = TypeVar("_Arguments", ModelArguments, DataArguments, PoaTrainingArguments, EvaluationArguments)
_PARTS = (ModelArguments, DataArguments, PoaTrainingArguments, EvaluationArguments)


def parse_recipe(argv: list[str], prog: str = "poa pretrain") -> Recipe:
    """Read `[--config NAME_OR_FILE] [--key value ...]`; the command line wins.

    The file holds the fields of `DataArguments`, `EvaluationArguments` and `PoaTrainingArguments` at the top and those
    of `PoaConfig` under `model` (the elastic backbone's under `backbone_config`). On the command line the latter are
    written with dots, as in `--model.backbone_config.hidden_size 96`.

    With `init_from`, defaults come from the source: the backbone's full size, image normalisation, crops that fit its
    patches. The schedules are a tenth of the published ones.

    Args:
        argv: The arguments.
        prog: What help and errors call the program.

    Raises:
        ValueError: For an unknown key (with the nearest known ones) or a value that does not fit.
    """
    argv, overrides = split_model_overrides(argv)
    return read_recipe(vars(recipe_parser(prog).parse_args(argv)), overrides)


def read_recipe(options: dict[str, Any], overrides: list[tuple[list[str], Any]]) -> Recipe:
    """Read a recipe from the options that were given and the overrides of the model's fields.

    Raises:
        ValueError: For an unknown key of the file or a value that does not fit.
    """
    config_name = options.pop("config", None)
    content = Section() if config_name is None else read_mapping(find_config(config_name))
    with located(content):
        model = _model_section(content)
        check_keys(content, {each.name for part in _PARTS for each in dataclasses.fields(part)})
    content = content.without(replaced_by(options))
    for path, value in overrides:
        set_field(model, path, value)
    start = _part(ModelArguments, content, options)
    data = _part(DataArguments, content, options)
    training = _part(PoaTrainingArguments, content, options)
    evaluation = _part(EvaluationArguments, content, options)
    from ..models.declared_types import as_numbers
    from ..models.from_fields import model_config

    if start.init_from is None:
        others: dict[str, Any] = {"foreign_teacher": start.foreign_teacher, "gram_teacher": start.gram_teacher}
        others |= {"order_units": bool(start.order_units), "order_images": start.order_images}
        return Recipe(model_config(model), data, training, evaluation, **others)
    from ..runs.checkpoints import find_checkpoint
    from ..runs.layout import RunFolder
    from ..warm_start.defaults import changed_arguments, recorded_name, warn_of_high_learning_rate, with_source
    from ..warm_start.source import find_source, is_in_order

    checkpoint = find_checkpoint(Path(training.output_dir), training.resume_from_checkpoint, overwrite=True)
    source = find_source(start.init_from if checkpoint is None else checkpoint)
    model["backbone_config"] = as_numbers(model.get("backbone_config") or {})
    config = model_config(with_source(model, source))
    config.warm_started_from = recorded_name(start.init_from, source, checkpoint)
    changed = changed_arguments(config, source, training, explicit={*options, *content})
    training = dataclasses.replace(training, **changed)
    if checkpoint is None and "init_from" not in content and "learning_rate" in content.without(options):
        warn_of_high_learning_rate(training.learning_rate)
    order_units = start.order_units
    if source.run_config is not None:
        config.units_ordered_on = source.run_config.units_ordered_on
    if order_units is None and checkpoint is not None:  # it may still be ahead (elastic_start_step)
        recorded = RunFolder(checkpoint.parent).recipe
        order_units = read_mapping(recorded).get("order_units") if recorded.is_file() else None
        if order_units is None:
            order_units = config.units_ordered_on is not None
    if order_units is None:
        order_units = not is_in_order(source)
    teachers = (start.foreign_teacher, start.gram_teacher)
    started = (start.init_from, checkpoint, *teachers, order_units, start.order_images)
    return Recipe(config, data, training, evaluation, *started)


def recipe_parser(prog: str = "poa pretrain", of_run: bool = False) -> CommandParser:
    """Return the parser of `poa pretrain`, with an option for each field but the model's.

    Args:
        prog: What help and errors call the program.
        of_run: Whether the recipe is that of a run, which is given by its folder (`poa resume`).
    """
    form = "RUN" if of_run else "[--config NAME_OR_FILE]"
    what = "Go on with a run that was stopped, as its recipe says." if of_run else _PRETRAIN
    parser = _RecipeParser(
        prog,
        description=what,
        usage=f"{prog} {form} [--OPTION VALUE ...] [--model.FIELD VALUE ...]",
        epilog="The fields of the model are given as --model.FIELD and --model.backbone_config.FIELD: those of "
        "PoaConfig and of the backbone's configuration, such as --model.num_prototypes 4096 8192 or "
        "--model.backbone_config.model_type poa_swin.",
    )
    if of_run:
        parser.add_option(
            "run", metavar="RUN", help="folder of the run, one of its checkpoints to go back to, or the Hub id that it "
            "was pushed to, such as me/my-run; options that follow replace those of its recipe",
        )  # fmt: skip
    else:
        parser.add_option(
            "--config", metavar="NAME_OR_FILE", help="a recipe of poa_hf's by name, such as vit_large, or a YAML file "
            "with any of these options and, under `model`, the fields of the model",
        )  # fmt: skip
        parser.add_option(
            "--list_configs", action="store_true", help="list the recipes that come with poa_hf, and exit"
        )
    for part in _PARTS:
        add_fields(parser, part)
    parser.add_token(parser.add_argument_group("Hub"))
    return parser


class _RecipeParser(CommandParser):
    def instead_of(self, name: str) -> str | None:
        name = name.replace("-", "_")
        place = place_in_model(name)
        return instead_of(name, "--") or (f"give --{place}." if place else None)


def _part(part: type[_Arguments], content: Section, options: dict[str, Any]) -> _Arguments:
    """Make one of the dataclasses from a file's content and the options, which win."""
    rest = content.without(options)
    names = {each.name for each in dataclasses.fields(part)}
    with located(rest):
        return part(**read_mapping_values(part, rest), **{name: options[name] for name in names & options.keys()})


def _model_section(content: Section) -> dict[str, Any]:
    """Take the `model` section out of a file's content."""
    model = content.pop("model", None)
    model = {} if model is None else model
    backbone = model.get("backbone_config") if isinstance(model, dict) else model
    if backbone is not None and not isinstance(backbone, dict):
        raise ValueError("model and its backbone_config must hold `key: value` lines.")
    return model
