"""How many sub-networks a step trains, and from when on."""

import pytest
import torch

from poa_hf import PoaTrainer

from ..conftest import tiny_config
from .test_trainer import arguments, images, metrics, new_model

OPTIONS = dict(max_steps=4, elastic_start_step=2, num_elastic_students=3)


def test_students_begin_at_their_step_and_the_smallest_is_always_one(tmp_path):
    model = new_model()
    PoaTrainer(model, arguments(tmp_path, **OPTIONS), images()).train()
    log = metrics(tmp_path)
    assert [line["sub_network"] for line in log[:2]] == ["", ""]
    assert not any(name.startswith("distill") for line in log[:2] for name in line)
    space = model.config.backbone_config.space
    for step in (2, 3):
        expected = space.sub_networks_at(step, seed=0, count=3)
        assert log[step]["sub_network"] == ", ".join(map(str, expected)) and expected[0] == space.smallest
        assert log[step]["distill_global_crops_loss_0"] > 0
    assert all(line["tflops"] > 0 for line in log)


def test_the_first_steps_are_those_of_the_intact_student_alone(tmp_path):
    def train(name, intact_weight, **options):
        torch.manual_seed(0)
        model = new_model()
        model.config.intact_weight = intact_weight
        PoaTrainer(model, arguments(tmp_path / name, max_steps=2, **options), images()).train()
        return model.state_dict()

    late, alone = train("late", 0.6, elastic_start_step=2), train("alone", 1.0)
    assert all(torch.equal(tensor, alone[name]) for name, tensor in late.items())


def test_a_resumed_run_is_the_same(tmp_path):
    def train(name, resume=None, **options):
        model = new_model(drop_path_rate=0.3)
        trainer = PoaTrainer(model, arguments(tmp_path / name, save_steps=1, **(OPTIONS | options)), images())
        trainer.train(resume_from_checkpoint=resume)
        return model.state_dict()

    whole = train("whole")
    train("parts")
    parts = train("parts", resume=str(tmp_path / "parts" / "checkpoint-3"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("backbone", "count", "message"),
    [
        ({}, 9, "num_elastic_students is 9, but only 8 sizes are trained besides the full one: give at most as many"),
        ({"num_candidates": 2}, 2, "only 1 size is trained besides the full one"),
    ],
)
def test_more_students_than_sizes_are_refused(tmp_path, backbone, count, message):
    with pytest.raises(ValueError, match=message):
        PoaTrainer(new_model(**backbone), arguments(tmp_path, num_elastic_students=count), images())
    assert not list(tmp_path.iterdir())


def test_the_loss_has_the_weight_of_the_same_view_terms():
    assert tiny_config().same_view_weight == 1  # as the authors' code
    with pytest.raises(ValueError, match="same_view_weight is -1: give a number of at least 0"):
        tiny_config(same_view_weight=-1)
