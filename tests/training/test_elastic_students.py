"""How many sub-networks a step trains, and from when on."""

import pytest
import torch

from poa_hf import PoaTrainer
from poa_hf.training.checks import check_elastic_teacher

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


def test_settings_of_sub_networks_without_any_are_refused(tmp_path):
    def trainer(**options):
        model = new_model(**{name: options.pop(name) for name in ("num_candidates",) if name in options})
        model.config.intact_weight = 1.0
        for name in ("elastic_teacher", "same_view_weight"):
            if name in options:
                setattr(model.config, name, options.pop(name))
        return PoaTrainer(model, arguments(tmp_path, **options), images())

    for options in (dict(num_elastic_students=2), dict(elastic_teacher=True), dict(same_view_weight=0.5),
                    dict(num_candidates=3)):  # fmt: skip
        with pytest.raises(
            ValueError, match=f"no sub-network is trained and {next(iter(options))} would change nothing"
        ):
            trainer(**options)
    trainer()


def test_an_end_before_sub_networks_begin_is_noted(tmp_path, caplog):
    PoaTrainer(new_model(), arguments(tmp_path, elastic_start_step=4), images())
    assert "No sub-network is trained: elastic_start_step is 4, and the run ends at step 4." in caplog.text


def test_an_elastic_teacher_takes_the_same_size_on_all_processes():
    config, args = tiny_config(elastic_teacher=True), arguments("run")
    check_elastic_teacher(config, args, num_processes=1)
    with pytest.raises(ValueError, match="over all 2 processes, so they must train the same: add --same_sub_network"):
        check_elastic_teacher(config, args, num_processes=2)
    check_elastic_teacher(config, arguments("run", same_sub_network=True), num_processes=2)


def test_terms_of_sub_networks_are_means_over_the_steps_that_train_them(tmp_path):
    def logged(name, logging_steps):
        options = OPTIONS | dict(elastic_start_step=3, logging_steps=logging_steps)
        PoaTrainer(new_model(), arguments(tmp_path / name, **options), images()).train()
        return metrics(tmp_path / name)

    each, all_ = logged("each", 1), logged("all", 4)
    for name in ("distill_global_crops_loss_0", "distill_local_crops_loss_1"):
        assert all_[-1][name] == pytest.approx(each[-1][name])  # one of four steps
    assert all_[-1]["loss"] == pytest.approx(sum(line["loss"] for line in each) / 4)


def test_nothing_is_counted_of_sub_networks_that_are_not_trained(tmp_path):
    model = new_model()
    model.config.intact_weight = 1.0
    PoaTrainer(model, arguments(tmp_path), images()).train()
    assert {line["sub_network"] for line in metrics(tmp_path)} == {""}
