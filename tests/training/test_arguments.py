"""The arguments of a run: explained, and checked when they are made."""

import dataclasses
import re

import pytest

from poa_hf import PoaTrainingArguments


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0: give a number above 0"),
        ({"teacher_momentum": 1.5}, "give a number of at least 0 and at most 1"),
        ({"schedule_stretch": 0.0}, "schedule_stretch is 0.0"),
        ({"save_total_limit": 0}, "save_total_limit is 0: give a whole number of at least 1"),
        ({"mask_ratio": [0.5, 0.1]}, "mask_ratio"),
        ({"reduce_dtype": "float16"}, "reduce_dtype is 'float16': choose one of bfloat16"),
    ],
)
def test_arguments_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PoaTrainingArguments(**fields)


@pytest.mark.parametrize("field", dataclasses.fields(PoaTrainingArguments), ids=lambda field: field.name)
def test_each_field_is_explained_by_a_sentence(field):
    text = field.metadata["help"]
    assert re.fullmatch(r"[A-Z].*\w[)\]]?\.", text), text
    assert "\n" not in text and len(text) < 200


def test_trackers_are_names():
    assert PoaTrainingArguments(report_to="tensorboard, wandb").trackers == ["tensorboard", "wandb"]
    assert PoaTrainingArguments(report_to="none").trackers == []
    for given, names in ((["tensorboard", "wandb"], ["tensorboard", "wandb"]), (["none"], []), ([], []), (None, [])):
        args = PoaTrainingArguments(report_to=given)
        assert args.trackers == names and isinstance(args.report_to, str)
