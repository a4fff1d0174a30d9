"""Heads first: a pre-trained backbone that does not move for the first steps."""

import pytest
import torch

from poa_hf import PoaForPreTraining, PoaTrainer, PoaTrainingArguments
from poa_hf.training.optimization import build_optimizer, hyperparameters_at, parameter_groups

from ..conftest import random_batch, tiny_config
from .test_processes import OPTIONS, SCRIPT, launch, lines
from .test_trainer import arguments, images, metrics, new_model


def backbones(model) -> dict[str, torch.Tensor]:
    return {n: p.clone() for n, p in model.named_parameters() if n.startswith(("student.", "teacher."))}


def test_the_backbone_is_unchanged_to_the_last_bit_and_the_heads_learn(tmp_path):
    model = new_model(drop_path_rate=0.3)
    start, heads = backbones(model), {n: p.clone() for n, p in model.student_head.named_parameters()}
    args = dict(max_steps=4, freeze_backbone_steps=4, learning_rate=0.05, weight_decay=1.0, teacher_momentum=0.9)
    PoaTrainer(model, arguments(tmp_path, **args), images()).train()
    assert all(torch.equal(tensor, start[name]) for name, tensor in backbones(model).items())
    assert all(not torch.equal(p, heads[name]) for name, p in model.student_head.named_parameters())
    teacher = dict(model.teacher_head.named_parameters())
    assert all(not torch.equal(p, teacher[name]) for name, p in model.student_head.named_parameters())
    rates = [(line["freeze_backbone"], line["backbone_learning_rate"]) for line in metrics(tmp_path)]
    assert rates == [(True, 0.0)] * 4 and metrics(tmp_path)[1]["learning_rate"] > 0


def test_afterwards_the_backbone_moves_and_adamw_begins_with_it(tmp_path):
    model = new_model()
    start = backbones(model)
    args = dict(max_steps=5, freeze_backbone_steps=3, warmup_steps=2, learning_rate=0.05, teacher_momentum=0.9,
                gradient_checkpointing=True, gradient_accumulation_steps=2)  # fmt: skip
    trainer = PoaTrainer(model, arguments(tmp_path, **args), images())
    trainer.train()
    assert all(not torch.equal(tensor, start[name]) for name, tensor in backbones(model).items())
    state = trainer.optimizer.state
    counts = {int(state[p]["step"]) for p in model.student.parameters()}
    assert counts == {2} and {int(state[p]["step"]) for p in model.student_head.parameters()} == {5}
    log = metrics(tmp_path)
    assert [line["backbone_learning_rate"] / (line["learning_rate"] or 1) for line in log] == [0, 0, 0, 0.5, 1]


def test_frozen_gradients_are_those_of_the_heads_alone_and_zero_in_the_backbone(tiny_model):
    batch, size = random_batch(), "16x2"
    size = tiny_model.config.backbone_config.space.resolve(size)
    gradients = []
    for freeze in (False, True):
        tiny_model.zero_grad()
        output = tiny_model(**batch, sub_network=size, teacher_temperature=0.07, freeze_backbone=freeze)
        output.loss.backward()
        gradients.append(
            (output.loss.detach(), {n: p.grad for n, p in tiny_model.named_parameters() if p.requires_grad})
        )
    (loss, free), (frozen_loss, frozen) = gradients
    assert torch.equal(loss, frozen_loss) and free.keys() == frozen.keys()
    for name, gradient in frozen.items():
        if name.startswith("student."):
            assert not gradient.any(), name  # there, as DDP waits for it
        else:
            torch.testing.assert_close(gradient, free[name])
    assert any(free[name].any() for name in free if name.startswith("student."))


def test_without_freezing_backbone_and_heads_have_one_schedule():
    args = PoaTrainingArguments(max_steps=100, warmup_steps=10)
    for step in range(100):
        values = hyperparameters_at(step, args, 1024)
        assert values.backbone_learning_rate == values.learning_rate and not values.freeze_backbone
    args = PoaTrainingArguments(max_steps=100, warmup_steps=0, freeze_backbone_steps=10)
    steps = [hyperparameters_at(step, args, 1024) for step in range(9, 12)]
    assert [s.backbone_learning_rate / s.learning_rate for s in steps] == [0, 1, 1]


def test_groups_hold_backbone_or_heads():
    model = PoaForPreTraining(tiny_config())
    ours = {id(p) for p in model.student.parameters()}
    for group in parameter_groups(model, 0.9, 0.2):
        assert {id(p) in ours for p in group["params"]} == {group["is_backbone"]}
    build_optimizer(model, PoaTrainingArguments())


@pytest.mark.parametrize("at", [2, 4])
def test_resumed_before_or_after_the_thaw_is_the_same_to_the_last_bit(tmp_path, at):
    args = dict(max_steps=6, freeze_backbone_steps=3, warmup_steps=4, save_steps=2, save_total_limit=None)
    whole, parts = new_model(drop_path_rate=0.3), new_model(drop_path_rate=0.3)
    PoaTrainer(whole, arguments(tmp_path / "run", **args), images()).train()
    checkpoint = str(tmp_path / "run" / f"checkpoint-{at}")
    PoaTrainer(parts, arguments(tmp_path / "run", **args), images()).train(resume_from_checkpoint=checkpoint)
    assert all(torch.equal(tensor, parts.state_dict()[name]) for name, tensor in whole.state_dict().items())


@pytest.mark.slow
def test_two_processes_freeze_and_thaw_together(tmp_path):
    from safetensors.torch import load_file

    config = tmp_path / "config.yaml"
    config.write_text(OPTIONS % 0.0)
    argv = ["--config", str(config), "--freeze_backbone_steps", "3", "--max_steps", "5", "--learning_rate", "0.05"]
    launch(2, *argv, "--output_dir", str(tmp_path / "run"), "--save_steps", "3", script=SCRIPT)
    log = lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["freeze_backbone"] for line in log] == [True] * 3 + [False] * 2
    frozen = load_file(tmp_path / "run" / "checkpoint-3" / "model.safetensors")
    moved = load_file(tmp_path / "run" / "model.safetensors")
    names = [name for name in frozen if name.startswith("student.")]
    assert names and all(torch.equal(frozen[n], frozen[n.replace("student.", "teacher.", 1)]) for n in names)
    assert any(not torch.equal(frozen[n], moved[n]) for n in names)


def test_a_negative_number_of_steps_is_refused():
    with pytest.raises(ValueError, match="freeze_backbone_steps is -1: give a whole number of at least 0"):
        PoaTrainingArguments(freeze_backbone_steps=-1)
