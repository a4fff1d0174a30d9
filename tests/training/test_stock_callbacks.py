"""Stock callbacks of transformers in a `PoaTrainer`, each as its users make it."""

import importlib.util
import json

import pytest
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
    integrations,
)

from poa_hf import PoaTrainer, PoaTrainingArguments
from poa_hf.training.callbacks import EvaluationCallback

from .test_trainer import arguments, images, metrics, new_model


class Accuracies(EvaluationCallback):
    """Measures, every second step, what a list says."""

    def __init__(self, *values: float):
        self.values = list(values)
        self.steps = []

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = state.global_step % 2 == 0

    def evaluate(self, args, state, model):
        self.steps.append(state.global_step)
        return {"knn_mean": self.values[len(self.steps) - 1]}


class Recorder(TrainerCallback):
    """Records the events of a run."""

    def __init__(self):
        self.events = []
        for name in (name for name in dir(TrainerCallback) if name.startswith("on_")):
            setattr(self, name, lambda *args, event=name, **kwargs: self.events.append((event, kwargs)))


def test_early_stopping_stops_after_evaluations_that_are_no_better(tmp_path):
    accuracies = Accuracies(0.5, 0.6, 0.55, 0.6, 0.9)
    args = arguments(tmp_path, max_steps=10, load_best_model_at_end=True, quiet=True)
    trainer = PoaTrainer(new_model(), args, images(), callbacks=[accuracies, EarlyStoppingCallback(2)])
    state = trainer.train()
    assert state.global_step == 8 and accuracies.steps == [2, 4, 6, 8]
    assert state.best_global_step == 4 and state.best_metric == 0.6
    # the model that is left is the best one's
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "checkpoint-4/model.safetensors").read_bytes()
    assert (tmp_path / "model.safetensors").read_bytes() != (tmp_path / "checkpoint-8/model.safetensors").read_bytes()


def test_events_come_in_the_order_of_transformers(tmp_path):
    recorder = Recorder()
    args = arguments(tmp_path, max_steps=4, save_strategy="epoch", logging_strategy="epoch", quiet=True)
    PoaTrainer(new_model(), args, images(8), callbacks=[recorder, Accuracies(0.1, 0.2)]).train()  # 2 steps an epoch
    step = ["on_step_begin", "on_step_end"]
    epoch = ["on_epoch_begin", *step, *step, "on_evaluate", "on_epoch_end", "on_log", "on_save"]
    assert [event for event, _ in recorder.events] == ["on_train_begin", *epoch, *epoch, "on_train_end"]
    measured = [kwargs["metrics"] for event, kwargs in recorder.events if event == "on_evaluate"]
    assert measured == [{"eval_knn_mean": 0.1}, {"eval_knn_mean": 0.2}]
    logs = [kwargs["logs"] for event, kwargs in recorder.events if event == "on_log"]
    assert [line["epoch"] for line in logs] == [1, 2] and [line["knn_mean"] for line in logs] == [0.1, 0.2]
    assert {"sub_network", "time"} <= metrics(tmp_path)[0].keys()


@pytest.mark.parametrize("callback", [PrinterCallback, ProgressCallback], ids=lambda each: each.__name__)
def test_lines_are_shown(callback, tmp_path, capsys):
    trainer = PoaTrainer(new_model(), arguments(tmp_path, quiet=True, max_steps=2), images(), callbacks=[callback])
    trainer.train()
    shown = capsys.readouterr()
    assert "grad_norm" in shown.out + shown.err


TRACKERS = {
    "tensorboard": "TensorBoardCallback",
    "wandb": "WandbCallback",
    "trackio": "TrackioCallback",
    "mlflow": "MLflowCallback",
    "codecarbon": "CodeCarbonCallback",
    "comet_ml": "CometCallback",
}  # fmt: skip; ClearML is left out, as its offline mode does not end


@pytest.mark.parametrize("package", TRACKERS)
def test_trackers_get_the_numbers_of_a_run(package, tmp_path, monkeypatch):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(), "COMET_MODE": "OFFLINE",
        "COMET_OFFLINE_DIRECTORY": str(tmp_path / "comet"), "HF_HUB_OFFLINE": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    callback = getattr(integrations, TRACKERS[package])()
    args = arguments(tmp_path / "run", max_steps=2, quiet=True, run_name="first", project="birds")
    recorder = Recorder()
    PoaTrainer(new_model(), args, images(), callbacks=[callback, Accuracies(0.25), recorder]).train()
    assert sum(event == "on_log" for event, _ in recorder.events) == 2
    if package == "tensorboard":
        assert list((tmp_path / "run" / "runs").rglob("events.out.tfevents*"))
    if package == "wandb":
        assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_arguments_answer_as_those_of_transformers(tmp_path):
    args = arguments(tmp_path, run_name="first", local_crop_scale=(0.1, 0.3))
    assert json.loads(args.to_json_string()) == args.to_dict()
    assert args.to_dict()["local_crop_scale"] == [0.1, 0.3]
    assert all(isinstance(value, bool | int | float | str) for value in args.to_sanitized_dict().values())
    stock = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for name in ("world_size", "process_index", "local_process_index", "device", "n_gpu", "parallel_mode"):
        assert getattr(args, name) == getattr(stock, name), name


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_train_epochs": 1.0}, "num_train_epochs is 1, but a stream does not know"),
        ({"save_strategy": "epoch"}, "save_strategy is 'epoch', but a stream"),
        ({"load_best_model_at_end": True}, "the run is not evaluated: give eval_steps"),
        ({"metric_for_best_model": "knn_large"}, "which was not measured: choose one of knn_mean"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_a_sentence(fields, words, tmp_path):
    from datasets import Dataset

    stream = Dataset.from_dict({"image": images()}).to_iterable_dataset()
    callbacks = [Accuracies(0.1, 0.2)] if "metric_for_best_model" in fields else []
    with pytest.raises(ValueError, match=words):
        PoaTrainer(new_model(), arguments(tmp_path, quiet=True, **fields), stream, callbacks=callbacks).train()


def test_epochs_and_the_share_of_the_warm_up_become_steps(tmp_path):
    args = arguments(tmp_path, num_train_epochs=2.5, warmup_ratio=0.3, quiet=True)
    trainer = PoaTrainer(new_model(), args, images(18))
    assert trainer.args.max_steps == 12 and trainer.args.warmup_steps == 4  # 45 images of 4 a step; 3.6 steps
    assert trainer.state.num_train_epochs == 3 and args.max_steps == 4
    assert PoaTrainingArguments(num_train_epochs=3.0, num_train_images=100).with_steps(None, 50).max_steps == 6


def test_a_trainer_evaluates_when_asked_and_takes_callbacks_later(tmp_path):
    trainer = PoaTrainer(new_model(), arguments(tmp_path, quiet=True, max_steps=2), images())
    with pytest.raises(ValueError, match="give the trainer a KnnEvaluationCallback"):
        trainer.evaluate()
    recorder = Recorder()
    trainer.add_callback(Accuracies(0.5, 0.75))
    trainer.add_callback(recorder)
    assert trainer.evaluate() == {"eval_knn_mean": 0.5}
    trainer.remove_callback(recorder)
    assert trainer.train().best_metric == 0.75
    assert [event for event, _ in recorder.events] == ["on_evaluate"]
