import json
import time

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TrainerCallback

from poa_hf import PoaForPreTraining, PoaTrainer, PoaTrainingArguments
from poa_hf.runs.load import resolve_run
from poa_hf.training.trainer import TrainingDivergedError

from ..conftest import tiny_backbone, tiny_config


def images(count: int = 16) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(count)]


def arguments(output_dir, **overrides) -> PoaTrainingArguments:
    fields = dict(
        output_dir=str(output_dir), max_steps=4, per_device_train_batch_size=4, warmup_steps=2,
        freeze_last_layer_steps=1, teacher_temperature_warmup_steps=2, masked_prediction_start_step=1,
        global_crop_size=32, local_crop_size=16, num_local_crops=2, dataloader_num_workers=0, logging_steps=1,
        save_steps=100, disable_tqdm=True,
    )  # fmt: skip
    return PoaTrainingArguments(**{**fields, **overrides})


def new_model(**backbone) -> PoaForPreTraining:
    torch.manual_seed(0)
    return PoaForPreTraining(tiny_config(tiny_backbone(**backbone)))


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_training_lowers_the_loss_moves_the_teacher_and_leaves_a_model(tmp_path):
    model = new_model()
    start = {n: p.clone() for n, p in model.named_parameters()}
    args = arguments(tmp_path, max_steps=40, learning_rate=0.02, teacher_momentum=0.9, final_teacher_momentum=0.95)
    PoaTrainer(model, args, images()).train()
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert np.mean([line["loss"] for line in lines[-5:]]) < np.mean([line["loss"] for line in lines[1:6]])
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, start[name]), name
    loaded = PoaForPreTraining.from_pretrained(tmp_path)
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in model.state_dict().items())
    expected = "loss grad_norm learning_rate teacher_entropy_0 prototype_use_1 feature_spread effective_rank data_wait"
    assert {*expected.split(), "images_per_second", "sub_network", "koleo_loss", "ibot_loss_1"} <= lines[-1].keys()


def test_the_run_is_a_function_of_the_seed(tmp_path):
    losses = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(3)  # the state of the global generator must not matter
        PoaTrainer(new_model(drop_path_rate=0.3), arguments(tmp_path / name, seed=seed), images()).train()
        losses.append([line["loss"] for line in metrics(tmp_path / name)])
    assert losses[0] == losses[1] != losses[2]


def test_datasets_and_streams_train_without_labels(tmp_path):
    for name, dataset in {
        "map": datasets.Dataset.from_dict({"picture": images()}),
        "stream": datasets.Dataset.from_dict({"picture": images()}).to_iterable_dataset(num_shards=2),
    }.items():
        PoaTrainer(new_model(), arguments(tmp_path / name), dataset).train()
        assert len(metrics(tmp_path / name)) == 4


def test_accumulated_gradients_are_the_mean_of_their_parts(tmp_path):
    gradients = {}

    class Recorder(PoaTrainer):
        def compute_loss(self, model, inputs, return_outputs=False):
            loss, output = super().compute_loss(model, inputs, return_outputs=True)
            gradients.setdefault("parts", []).append(torch.autograd.grad(loss, self.parameter, retain_graph=True))
            return loss, output

    model = new_model()
    trainer = Recorder(
        model, arguments(tmp_path, gradient_accumulation_steps=3, max_steps=1, max_grad_norm=1e9), images()
    )
    trainer.parameter = model.student.embeddings.cls_token
    trainer.optimizer.zero_grad = lambda: gradients.update(total=trainer.parameter.grad.clone())
    trainer.train()
    assert len(gradients["parts"]) == 3
    torch.testing.assert_close(gradients["total"], torch.stack([part for (part,) in gradients["parts"]]).mean(0))


def test_resuming_repeats_an_uninterrupted_run_exactly(tmp_path):
    options = dict(max_steps=6, save_steps=2, gradient_accumulation_steps=2, log_image_ids=True, bf16=False)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    PoaTrainer(new_model(drop_path_rate=0.3), arguments(whole, **options), images()).train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PoaTrainer(new_model(drop_path_rate=0.3), arguments(parts, **options), images(), callbacks=[Stop()]).train()
    torch.manual_seed(99)  # another process starts from other weights and another random state
    other = PoaForPreTraining(tiny_config(tiny_backbone(drop_path_rate=0.3)))
    PoaTrainer(other, arguments(parts, **options), images()).train(resume_from_checkpoint=True)
    a, b = (PoaForPreTraining.from_pretrained(folder).state_dict() for folder in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (whole / "image_ids-0.jsonl").read_text() == (parts / "image_ids-0.jsonl").read_text()
    timed = {"images_per_second", "data_wait", "time", "step_seconds", "slowest_step_seconds", "tflops"}
    untimed = [
        [{k: v for k, v in line.items() if k not in timed} for line in metrics(folder)] for folder in (whole, parts)
    ]
    assert untimed[0] == untimed[1]


def test_old_checkpoints_are_pruned_and_unfinished_ones_are_ignored(tmp_path):
    args = arguments(tmp_path, max_steps=5, save_steps=1, save_total_limit=2)
    PoaTrainer(new_model(), args, images()).train()
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    (tmp_path / ".unfinished-checkpoint-9").mkdir()
    args = arguments(tmp_path, max_steps=6, save_steps=1, save_total_limit=2)
    state = PoaTrainer(new_model(), args, images()).train(resume_from_checkpoint=True)
    assert state.global_step == 6 and not list(tmp_path.glob(".unfinished*"))
    assert metrics(tmp_path)[-1]["step"] == 6


def test_a_crash_while_saving_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    args = arguments(tmp_path, save_steps=2)

    class FullDisk(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 4:
                monkeypatch.setattr(type(model), "save_pretrained", self.fail)

        def fail(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        PoaTrainer(new_model(), args, images(), callbacks=[FullDisk()]).train()
    monkeypatch.undo()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]
    assert PoaTrainer(new_model(), args, images()).train(resume_from_checkpoint=True).global_step == 4


class Poison(TrainerCallback):
    """Makes the class token NaN before the given steps (counted from 0), and mends it after."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step in self.steps:
            self.kept = model.student.embeddings.cls_token.detach().clone()
            model.student.embeddings.cls_token.data.fill_(float("nan"))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step - 1 in self.steps:
            model.student.embeddings.cls_token.data.copy_(self.kept)


def test_steps_without_a_finite_loss_are_skipped_and_counted(tmp_path):
    model = new_model()
    PoaTrainer(model, arguments(tmp_path, max_steps=6), images(), callbacks=[Poison({2, 3})]).train()
    assert all(p.isfinite().all() for p in model.parameters())
    lines = metrics(tmp_path)
    assert [line["nonfinite_steps"] for line in lines] == [0, 0, 1, 2, 2, 2]
    assert "loss" not in lines[2] and np.isfinite(lines[5]["loss"])


def test_too_many_such_steps_in_a_row_stop_the_run(tmp_path):
    args = arguments(tmp_path, max_steps=9, max_nonfinite_steps=3, save_steps=2)
    with pytest.raises(TrainingDivergedError, match="not finite for 3 steps in a row"):
        PoaTrainer(new_model(), args, images(), callbacks=[Poison(range(1, 9))]).train()
    assert len(metrics(tmp_path)) == 4  # stopped after steps 2, 3 and 4
    assert (tmp_path / "checkpoint-4").exists()  # checkpoints went on


def test_stock_callbacks_see_the_run_and_can_stop_it(tmp_path):
    seen = []

    class Watcher(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(logs["loss"])

        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = state.global_step == 1
            control.should_training_stop = state.global_step == 2
            return control

    state = PoaTrainer(new_model(), arguments(tmp_path), images(), callbacks=[Watcher()]).train()
    assert state.global_step == 2 and len(seen) == 2 and (tmp_path / "checkpoint-1").exists()


def test_a_run_that_a_callback_stops_ends_with_a_line_and_a_checkpoint(tmp_path):
    """Whichever event it stops at: the last step is always saved, as save_strategy says."""

    class Stopper(TrainerCallback):
        def __init__(self, event):
            setattr(self, event, self.stop)

        def stop(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    for event in ("on_step_end", "on_log", "on_save"):
        run = tmp_path / event
        options = {"save_steps": 2 if event == "on_save" else 100, "profile_steps": "2:9"}
        state = PoaTrainer(new_model(), arguments(run, **options), images(), callbacks=[Stopper(event)]).train()
        assert state.global_step == 2 and [line["step"] for line in metrics(run)] == [1, 2], event
        assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"], event
        assert (run / "profile" / "kernels.txt").stat().st_size, event


def test_lines_of_the_log_that_a_crash_has_cut_are_written_again(tmp_path):
    PoaTrainer(new_model(), arguments(tmp_path, max_steps=3, save_steps=2), images()).train()
    log = tmp_path / "metrics.jsonl"
    whole = metrics(tmp_path)
    first, second, _ = log.read_text().splitlines(keepends=True)
    log.write_text(first + second[:40])  # and the third line is lost
    options = {"resume_from_checkpoint": str(tmp_path / "checkpoint-2")}
    PoaTrainer(new_model(), arguments(tmp_path, max_steps=3, **options), images()).train()
    assert metrics(tmp_path)[:2] == whole[:2] and metrics(tmp_path)[2]["step"] == 3


def test_bfloat16_and_activation_checkpointing_train(tmp_path):
    PoaTrainer(new_model(), arguments(tmp_path, bf16=True, gradient_checkpointing=True), images()).train()
    assert all(np.isfinite(line["loss"]) for line in metrics(tmp_path))
    assert PoaForPreTraining.from_pretrained(tmp_path).dtype == torch.float32


def test_a_folder_with_another_run_is_refused(tmp_path):
    PoaTrainer(new_model(), arguments(tmp_path), images()).train()
    with pytest.raises(ValueError, match="holds another run: give another output_dir, resume_from_checkpoint"):
        PoaTrainer(new_model(), arguments(tmp_path), images()).train()
    (tmp_path / "mine.txt").write_text("kept")
    PoaTrainer(new_model(), arguments(tmp_path, max_steps=2, overwrite_output_dir=True), images()).train()
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2] and (tmp_path / "mine.txt").exists()


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    PoaTrainer(new_model(), arguments(tmp_path), images()).train()
    wider = new_model(hidden_size=64, num_attention_heads=8)
    with pytest.raises(ValueError, match=r"has another architecture: its backbone_config\.\w+ is"):
        PoaTrainer(wider, arguments(tmp_path), images()).train(resume_from_checkpoint=True)


def test_resuming_without_a_checkpoint(tmp_path):
    assert PoaTrainer(new_model(), arguments(tmp_path), images()).train(resume_from_checkpoint=True).global_step == 4
    with pytest.raises(ValueError, match="nowhere is not a checkpoint"):
        PoaTrainer(new_model(), arguments(tmp_path), images()).train(resume_from_checkpoint="nowhere")


def weights(folder) -> dict:
    return PoaForPreTraining.from_pretrained(folder).state_dict()


def test_going_back_puts_later_checkpoints_aside(tmp_path):
    PoaTrainer(new_model(), arguments(tmp_path, save_steps=1, save_total_limit=None), images()).train()
    args = arguments(tmp_path, max_steps=3, save_steps=1, save_total_limit=2)
    PoaTrainer(new_model(), args, images()).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert sorted(p.name for p in tmp_path.glob("abandoned-*")) == [f"abandoned-checkpoint-{i}" for i in (2, 3, 4)]
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3]


def test_an_ended_run_that_goes_on_is_no_longer_ended(tmp_path):
    PoaTrainer(new_model(), arguments(tmp_path, save_steps=2), images()).train()

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        args = arguments(tmp_path, max_steps=9, save_steps=2)
        PoaTrainer(new_model(), args, images(), callbacks=[Stop()]).train(resume_from_checkpoint=True)
    assert resolve_run(tmp_path).name == "checkpoint-6"


def test_a_run_that_never_started_leaves_the_folder_to_others(tmp_path):
    args = arguments(tmp_path / "run", overwrite_output_dir=True)
    PoaTrainer(new_model(), args, images()).train()
    before = weights(tmp_path / "run")
    broken = datasets.Dataset.from_dict({"image": [b"no image"] * 8})
    with pytest.raises(ValueError, match="could be decoded"):
        PoaTrainer(
            new_model(), arguments(tmp_path / "run", overwrite_output_dir=True, image_column="image"), broken
        ).train()
    assert all(torch.equal(t, before[name]) for name, t in weights(tmp_path / "run").items())
    with pytest.raises(ValueError, match="could be decoded"):
        PoaTrainer(new_model(), arguments(tmp_path / "new", image_column="image"), broken).train()
    assert not (tmp_path / "new").exists()


def test_half_a_checkpoint_is_none(tmp_path):
    PoaTrainer(new_model(), arguments(tmp_path, save_steps=2), images()).train()
    (tmp_path / "checkpoint-9").mkdir()
    (tmp_path / "checkpoint-4" / "model.safetensors").unlink()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('5\n{}\n{"step": null}\n{"step": 4, "lo')
    state = PoaTrainer(new_model(), arguments(tmp_path, max_steps=5), images()).train(resume_from_checkpoint=True)
    assert state.global_step == 5 and [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="checkpoint-9 is not a checkpoint"):
        PoaTrainer(new_model(), arguments(tmp_path), images()).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-9")
        )


def test_a_checkpoint_of_another_run_or_batch_is_refused(tmp_path):
    for name in ("a", "b"):
        PoaTrainer(new_model(), arguments(tmp_path / name, save_steps=2), images()).train()
    with pytest.raises(ValueError, match="holds another run than"):
        args = arguments(tmp_path / "a")
        PoaTrainer(new_model(), args, images()).train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    with pytest.raises(ValueError, match="4 images a step, this one has 8"):
        args = arguments(tmp_path / "a", max_steps=6, gradient_accumulation_steps=2)
        PoaTrainer(new_model(), args, images()).train(resume_from_checkpoint=True)
    args = arguments(tmp_path / "a", max_steps=6, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert PoaTrainer(new_model(), args, images()).train(resume_from_checkpoint=True).global_step == 6
    with pytest.raises(ValueError, match="lies after max_steps 3"):
        PoaTrainer(new_model(), arguments(tmp_path / "b", max_steps=3), images()).train(resume_from_checkpoint=True)


def test_weights_of_losses_may_change_on_the_way(tmp_path):
    PoaTrainer(new_model(), arguments(tmp_path), images()).train()
    model = PoaForPreTraining(tiny_config(tiny_backbone(drop_path_rate=0.1), koleo_weight=0.3))
    args = arguments(tmp_path, max_steps=5)
    assert PoaTrainer(model, args, images()).train(resume_from_checkpoint=True).global_step == 5


def test_precision_and_accumulation_are_the_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    for bf16, precision in ((True, "bf16"), (False, "no"), (True, "bf16")):  # one after the other in one process
        trainer = PoaTrainer(new_model(), arguments(tmp_path, bf16=bf16), images())
        assert trainer.accelerator.mixed_precision == precision
        assert trainer.accelerator.gradient_accumulation_steps == 1


def test_waiting_for_data_is_said_once(tmp_path, caplog):
    class Slow:
        def __len__(self):
            return 16

        def __getitem__(self, index):
            time.sleep(0.1)  # much longer than a step, also on a busy machine
            return images(1)[0]

    PoaTrainer(new_model(), arguments(tmp_path, max_steps=4), Slow()).train()
    assert metrics(tmp_path)[-1]["data_wait"] > 0.2
    assert [record.message for record in caplog.records if "waiting for data" in record.message] == [
        "More than a fifth of the time is spent waiting for data: raise dataloader_num_workers."
    ]
