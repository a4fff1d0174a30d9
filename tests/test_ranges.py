"""Every field that holds a number declares its range, and the range holds for Python, files and the command line."""

import dataclasses
import json
import math
from fractions import Fraction

import numpy as np
import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from poa_hf import GnResNetConfig, PoaConfig, PoaResNetConfig, PoaSwinConfig, PoaTrainingArguments, PoaViTConfig
from poa_hf.cli.recipe import DataArguments, EvaluationArguments, ModelArguments, parse_recipe
from poa_hf.data.crop_arguments import CropArguments
from poa_hf.models import configuration_gn_resnet
from poa_hf.ranges import COUNT, FINITE, POSITIVE, SHARE, Range, check_number, declared_ranges

ARGUMENTS = (CropArguments, PoaTrainingArguments, EvaluationArguments, DataArguments, ModelArguments)
SMALL = {
    PoaConfig: {"num_prototypes": [16]},
    PoaViTConfig: {},
    PoaSwinConfig: {},
    PoaResNetConfig: {},
    GnResNetConfig: {},
}
GENERAL = {field.name for field in dataclasses.fields(PreTrainedConfig)}


def ranges_of(config_class) -> dict[str, Range]:
    if config_class is not GnResNetConfig:
        return config_class.ranges
    whole = {name: name != "layer_norm_eps" for name in configuration_gn_resnet._RANGES}
    return {name: Range(*bounds, whole=whole[name]) for name, bounds in configuration_gn_resnet._RANGES.items()}


def holds_numbers(field) -> bool:
    return not field.name.startswith("_") and any(kind in str(field.type) for kind in ("int", "float"))


def outside(allowed: Range) -> list:
    """Numbers just outside a range, and what is in none."""
    step = 1 if allowed.whole else 1e-6
    values = [math.nan, math.inf, -math.inf, True, "many", 10**40]
    if allowed.low is not None:
        values += [allowed.low if allowed.above else allowed.low - step, allowed.low - 1]
    if allowed.high is not None:
        values.append(allowed.high if allowed.below else allowed.high + max(step, allowed.high * 1e-9))
    return values


@pytest.mark.parametrize("owner", [*ARGUMENTS, *SMALL], ids=lambda each: each.__name__)
def test_every_field_with_numbers_declares_a_range(owner):
    ranges = declared_ranges(owner) if owner in ARGUMENTS else ranges_of(owner)
    fields = [field for field in dataclasses.fields(owner) if owner in ARGUMENTS or field.name not in GENERAL]
    assert {field.name for field in fields if holds_numbers(field)} == set(ranges)


@pytest.mark.parametrize("owner", [*ARGUMENTS, *SMALL], ids=lambda each: each.__name__)
def test_numbers_outside_of_each_range_are_refused(owner):
    ranges = declared_ranges(owner) if owner in ARGUMENTS else ranges_of(owner)
    fixed = SMALL.get(owner, {})
    defaults = owner(**fixed)
    accepted = []
    for name, allowed in ranges.items():
        default = getattr(defaults, name)
        for value in outside(allowed):
            values = [value, *default[1:]] if isinstance(default, list | tuple) else value
            try:
                owner(**{**fixed, name: values})
            except (ValueError, StrictDataclassError) as error:
                assert name in str(error)
            else:
                accepted.append((name, values))
    assert not accepted


@pytest.mark.parametrize("owner", ARGUMENTS, ids=lambda each: each.__name__)
def test_numbers_just_inside_of_each_range_are_accepted(owner):
    for name, allowed in declared_ranges(owner).items():
        low, high = 0.0 if allowed.low is None else allowed.low, allowed.largest
        inside = [low if not allowed.above else low + 1e-6, high if not allowed.below else high - 1e-6]
        is_list = next(str(field.type) for field in dataclasses.fields(owner) if field.name == name).startswith("list[")
        for value in inside:
            check_number(name, value, allowed)
            if not is_list:
                owner(**{name: value})


@pytest.mark.parametrize(
    "value, allowed, message",
    [
        (-1.0, POSITIVE, "x is -1.0: give a number above 0."),
        (0, COUNT, "x is 0: give a whole number of at least 1."),
        (2**40, COUNT, "x is 1099511627776: give a whole number of at least 1, no larger than 2,147,483,647."),
        ([0.5, 1.5], SHARE, r"x is \[0.5, 1.5\]: give numbers of at least 0 and at most 1."),
        ([], SHARE, r"x is \[\]: give numbers"),
        (math.nan, FINITE, "x is nan: give a finite number."),
        ("3", COUNT, "x is '3': give a whole number of at least 1."),
    ],
)
def test_messages(value, allowed, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_number("x", value, allowed)


def test_numbers_of_numpy_and_paths_become_what_files_hold(tmp_path):
    args = PoaTrainingArguments(
        output_dir=tmp_path / "run", resume_from_checkpoint=tmp_path, seed=np.int64(1), max_steps=np.uint16(2),
        weight_decay=np.float32(0.5), learning_rate=np.float64(0.25), image_mean=[np.float32(0.5), 0.25, 1],
        num_train_epochs=Fraction(1, 2),
    )  # fmt: skip
    read_back = json.loads(args.to_json_string())
    assert read_back["output_dir"] == str(tmp_path / "run") and read_back["resume_from_checkpoint"] == str(tmp_path)
    assert (args.seed, args.max_steps, args.weight_decay, args.learning_rate) == (1, 2, 0.5, 0.25)
    assert args.image_mean == read_back["image_mean"] == [0.5, 0.25, 1] and args.num_train_epochs == 0.5
    names = ("seed", "max_steps", "weight_decay", "learning_rate", "num_train_epochs")
    assert [type(getattr(args, name)) for name in names] == [int, int, float, float, float]
    assert type(EvaluationArguments(eval_k=np.int32(7)).eval_k) is int
    with pytest.raises(ValueError, match="max_steps is 0: give a whole number of at least 1"):
        PoaTrainingArguments(max_steps=np.int64(0))
    with pytest.raises(ValueError, match="max_steps is 2.0: give a whole number"):
        PoaTrainingArguments(max_steps=np.float32(2))


@pytest.mark.parametrize("owner", (DataArguments, EvaluationArguments, ModelArguments))
def test_no_source_of_a_run_is_empty(owner):
    """`--dataset_name "$DATA"` with a variable that is not set would train on the default dataset."""
    texts = [field.name for field in dataclasses.fields(owner) if "str" in str(field.type)]
    assert len(texts) >= 3
    for name in texts:
        for value in ([], ["a", ""]) if "list" in str(owner.__annotations__[name]) else ("", " "):
            with pytest.raises(ValueError) as refusal:
                owner(**{name: value})
            assert str(refusal.value) == f"{name} is {value!r}: give it a value, or leave it out."


def test_an_empty_name_of_a_dataset_is_refused_with_its_line(tmp_path):
    for option in ("--dataset_name", "--eval_dataset_name", "--data_files", "--init_from"):
        with pytest.raises(ValueError, match=f"{option[2:]} is .*''[]]?: give it a value"):
            parse_recipe([option, ""])
    (tmp_path / "recipe.yaml").write_text("max_steps: 2\ndataset_name: ''\n")
    with pytest.raises(ValueError, match="recipe.yaml, line 2: dataset_name is ''"):
        parse_recipe(["--config", str(tmp_path / "recipe.yaml")])


def test_a_file_names_the_line_and_help_the_range(tmp_path, capsys):
    path = tmp_path / "a.yaml"
    path.write_text("seed: 3\nlearning_rate: -1\nmodel:\n  backbone_config:\n    layer_norm_eps: -1.0\n")
    with pytest.raises(ValueError, match="a.yaml, line 2: learning_rate is -1.0: give a number above 0."):
        parse_recipe(["--config", str(path)])
    with pytest.raises(ValueError, match="a.yaml, line 5: layer_norm_eps is -1.0: give a number above 0 and at most 1"):
        parse_recipe(["--config", str(path), "--learning_rate", "1"])
    with pytest.raises(ValueError, match="^learning_rate is -2.0"):
        parse_recipe(["--config", str(path), "--learning_rate", "-2"])
    with pytest.raises(SystemExit):
        parse_recipe(["--help"])
    assert "(above 0 and at most 1; default: 0.78)" in " ".join(capsys.readouterr().out.split())
