"""More processes, and sharded ones, change only the time; a checkpoint goes on with any of them."""

import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from poa_hf import KnnEvaluationCallback, PoaForPreTraining, PoaTrainer
from poa_hf.runs.checkpoints import checkpoints
from poa_hf.training.engines import configure_deepspeed, new_accelerator, prepare, whole_parameters

from ..conftest import tiny_config
from .processes import global_batches, in_processes, launch_environment, losses, metrics, train
from .test_distillation import teacher
from .test_trainer import arguments, images, new_model

GLOBAL_BATCH = 8
FSDP2, ZERO2 = (launch_environment(config) for config in ("fsdp2.yaml", "deepspeed_zero2.yaml"))
KOLEO_ROWS = 2  # what each of 4 processes has: KoLeo is of a process's own images
slow = pytest.mark.slow


def run(folder: Path, processes: int, environment: dict | None = None, **options) -> Path:
    options = {"per_device_train_batch_size": GLOBAL_BATCH // processes, "same_sub_network": True, **options}
    in_processes(processes, train, str(folder), {}, options, KOLEO_ROWS, environment=environment)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """Ten steps of one process, with a checkpoint in the middle."""
    return run(tmp_path_factory.mktemp("one"), 1, save_steps=5)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("two"), 2, save_steps=5)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("sharded"), 2, FSDP2, save_steps=5)


def assert_same_run(folder: Path, processes: int, one: Path) -> None:
    """Losses, gradients, images and final weights are those of one process."""
    expected, found = losses(one), losses(folder)
    assert list(found) == list(range(1, 11))
    assert len(found[10]) == 13 and found[10]["koleo_loss"] != 0 and found[10]["ibot_loss_0"] != 0
    for step, values in found.items():
        for name, value in values.items():
            assert value == pytest.approx(expected[step][name], rel=1e-5, abs=1e-6), (step, name)
    assert [line["sub_network"] for line in metrics(folder)] == [line["sub_network"] for line in metrics(one)]
    assert global_batches(folder, processes) == global_batches(one, 1)
    a, b = (load_file(path / "model.safetensors") for path in (one, folder))
    assert a.keys() == b.keys() and all((a[name] - b[name]).abs().max() < 1e-4 for name in a)


def test_two_processes_give_the_losses_of_one(one, two):
    assert_same_run(two, 2, one)


@slow
def test_four_processes_give_the_losses_of_one(one, tmp_path):
    assert_same_run(run(tmp_path, 4), 4, one)


def test_shards_of_two_processes_give_the_losses_of_one(one, sharded):
    assert_same_run(sharded, 2, one)
    assert len(checkpoints(sharded)) == 2
    assert {path.name for path in (sharded / "checkpoint-5").iterdir()} >= {"model.safetensors", "optimizer.bin"}
    names = [sorted(path.name for path in folder.iterdir() if "random_states" not in path.name)
             for folder in (sharded / "checkpoint-5", one / "checkpoint-5")]  # fmt: skip
    assert set(names[0]) - set(names[1]) == {"data_state_1.json"}, "a checkpoint is of no engine"


@pytest.mark.parametrize(
    ("start", "processes", "environment"),
    [
        ("two", 1, None),
        pytest.param("two", 4, None, marks=slow),
        ("sharded", 1, None),
        ("one", 2, FSDP2),
        pytest.param("sharded", 4, FSDP2, marks=slow),
    ],
    ids=["two-one", "two-four", "shards-one", "one-shards", "two_shards-four_shards"],
)
def test_a_checkpoint_goes_on_with_other_processes_and_engines(one, start, processes, environment, request, tmp_path):
    checkpoint = request.getfixturevalue(start) / "checkpoint-5"
    run(tmp_path, processes, environment, resume_from_checkpoint=str(checkpoint))
    expected, found = losses(one), losses(tmp_path)
    assert list(found) == list(range(6, 11))
    for step, values in found.items():
        for name, value in values.items():
            assert value == pytest.approx(expected[step][name], rel=1e-5, abs=1e-6), (step, name)
    assert global_batches(tmp_path, processes) == global_batches(one, 1)[5:]
    a, b = (load_file(path / "model.safetensors") for path in (one, tmp_path))
    assert all((a[name] - b[name]).abs().max() < 1e-4 for name in a)


def train_and_measure(folder: str) -> None:
    from ..evaluation.test_callback import textures

    options = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, bf16=True, gradient_checkpointing=True)
    callback = KnnEvaluationCallback(textures(), every_steps=4, k=5)
    trainer = train(folder, {}, {**options, "same_sub_network": True}, callbacks=[callback])
    parameter = trainer.model.student.embeddings.patch_embeddings.projection.weight
    assert parameter.to_local().numel() * trainer.accelerator.num_processes == parameter.numel()
    state = trainer.optimizer.state[parameter]
    assert state["exp_avg"].to_local().numel() == parameter.to_local().numel(), "the optimizer's state is not sharded"
    with whole_parameters(trainer.model):
        extracted = trainer.model.teacher.extract("16x2")
    if trainer.is_main:
        extracted.save_pretrained(Path(folder) / "extracted")


@slow
def test_shards_with_bfloat16_accumulation_checkpointing_and_knn(tmp_path):
    in_processes(2, train_and_measure, str(tmp_path), environment=FSDP2)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines if "knn_mean" in line] == [4, 8, 10]
    model = PoaForPreTraining.from_pretrained(tmp_path)
    expected = model.teacher.extract("16x2").state_dict()
    found = load_file(tmp_path / "extracted" / "model.safetensors")
    assert len(expected) == len(found)
    total = sum(tensor.double().sum() for tensor in expected.values())
    assert float(sum(tensor.double().sum() for tensor in found.values())) == pytest.approx(float(total), rel=1e-6)
    in_processes(1, train, str(tmp_path / "one"), {}, dict(per_device_train_batch_size=8, bf16=True), 2)
    for a, b in zip(lines, metrics(tmp_path / "one"), strict=True):
        assert a["dino_global_crops_loss_0"] == pytest.approx(b["dino_global_crops_loss_0"], rel=0.05), a["step"]


def train_with_teachers(folder: str, options: dict) -> None:
    """A run that learns from a foreign teacher, and whose patches are anchored to its own first one."""
    torch.manual_seed(0)
    model = PoaForPreTraining(tiny_config(koleo_weight=0.0, gram_weight=1.0))
    options = dict(same_sub_network=True, max_steps=3, save_steps=2, masked_prediction_start_step=100, **options)
    PoaTrainer(model, arguments(folder, **options), images(24), foreign_teacher=teacher()).train()


@slow
@pytest.mark.parametrize("form", ["features", "prototypes"])
def test_shards_learn_from_frozen_teachers_as_one_process_does(tmp_path, form):
    options = dict(foreign_teacher_loss=form)
    one, shards, resumed = (tmp_path / name for name in ("one", "shards", "resumed"))
    train_with_teachers(str(one), {**options, "per_device_train_batch_size": 8})
    in_processes(2, train_with_teachers, str(shards), options, environment=FSDP2)
    again = {**options, "resume_from_checkpoint": str(shards / "checkpoint-2")}
    in_processes(2, train_with_teachers, str(resumed), again, environment=FSDP2)
    expected = losses(one)
    assert list(losses(shards)) == [1, 2, 3] and list(losses(resumed)) == [3]
    for folder in (shards, resumed):
        for step, values in losses(folder).items():
            assert values["gram_loss"] > 0 or step == 1
            for name, value in values.items():
                assert value == pytest.approx(expected[step][name], rel=1e-4, abs=1e-6), (folder.name, step, name)
    a, b, c = (load_file(folder / "model.safetensors") for folder in (one, shards, resumed))
    assert all((a[name] - b[name]).abs().max() < 1e-4 and torch.equal(b[name], c[name]) for name in a)


def train_poisoned(folder: str, options: dict) -> None:
    """As `train`, with a loss that is not finite at the third step, on the second process only."""
    forward, calls = PoaForPreTraining.forward, []

    def poisoned(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        calls.append(output)
        if len(calls) == 3 and torch.distributed.get_rank() == 1:
            output.loss = output.loss * float("nan")
        return output

    PoaForPreTraining.forward = poisoned
    train(folder, {}, options)


@slow
@pytest.mark.parametrize("engine", ["fsdp2", "zero2"])
def test_a_step_that_is_not_finite_is_skipped_by_all(engine, tmp_path):
    if engine == "zero2":
        pytest.importorskip("deepspeed")
    environment = FSDP2 if engine == "fsdp2" else ZERO2
    options = dict(per_device_train_batch_size=4, max_steps=6, save_steps=2)
    in_processes(2, train_poisoned, str(tmp_path), options, environment=environment)
    found = metrics(tmp_path)
    assert [line["nonfinite_steps"] for line in found] == [0, 0, 1, 1, 1, 1] and "loss" not in found[2]
    weights = load_file(tmp_path / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


@slow
def test_deepspeed_gives_the_losses_of_one_process_and_resumes(tmp_path):
    """DeepSpeed clips backbone and heads together: without clipping, all is the same."""
    pytest.importorskip("deepspeed")
    options = dict(max_grad_norm=1e9, save_steps=5, gradient_accumulation_steps=2)
    one = run(tmp_path / "one", 1, per_device_train_batch_size=4, **options)
    options["per_device_train_batch_size"] = 2
    two = run(tmp_path / "two", 2, ZERO2, **options)
    assert_same_run(two, 2, one)
    resumed = run(tmp_path / "resumed", 2, ZERO2, resume_from_checkpoint=str(two / "checkpoint-5"), **options)
    assert losses(resumed) == {
        step: pytest.approx(values, rel=1e-5) for step, values in losses(two).items() if step > 5
    }
    with pytest.raises(ValueError, match="was written with DeepSpeed: resume with it"):
        args = arguments(tmp_path / "other", per_device_train_batch_size=8, max_steps=10)
        PoaTrainer(new_model(), args, images()).train(resume_from_checkpoint=str(two / "checkpoint-5"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, "ZeRO-3 is not supported"),
        ({"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}, "casts the teacher too"),
    ],
)
def test_deepspeed_settings_that_do_not_fit_are_refused(config, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        configure_deepspeed(config, arguments(tmp_path))


def test_deepspeed_is_told_what_the_arguments_say(tmp_path):
    config = {"zero_optimization": {"stage": 2}, "bf16": {"enabled": "auto"}, "gradient_accumulation_steps": 4}
    configure_deepspeed(config, arguments(tmp_path, max_grad_norm=2.5, bf16=True, gradient_accumulation_steps=3))
    assert config["gradient_clipping"] == 2.5 and config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 1, "the loop accumulates by itself"
    assert config["torch_autocast"]["enabled"] and config["bf16"] == {"enabled": "auto"}


def test_deepspeed_averages_in_what_its_own_configuration_says(tmp_path):
    with pytest.raises(ValueError, match="leave it out, and set communication_data_type"):
        configure_deepspeed({"zero_optimization": {"stage": 2}}, arguments(tmp_path, reduce_dtype="bfloat16"))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FSDP_VERSION": "1"}, "set fsdp_version: 2"),
        ({"FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}, "must be NO_WRAP"),
        ({"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "use --gradient_checkpointing"),
    ],
)
def test_settings_that_do_not_fit_sub_networks_are_refused(environment, message, tmp_path, monkeypatch):
    for name, value in {**FSDP2, **environment}.items():
        monkeypatch.setenv(name, value)
    model, args = new_model(), arguments(tmp_path)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match=message):
        prepare(new_accelerator(args), model, args)


def test_one_process_is_not_sharded(tmp_path, monkeypatch):
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    trainer = PoaTrainer(new_model(), arguments(tmp_path, max_steps=1), images())
    trainer.train()
    assert all(type(parameter) is torch.nn.Parameter for parameter in trainer.model.parameters())
    assert "RANK" not in os.environ
