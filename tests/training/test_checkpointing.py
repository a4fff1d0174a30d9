"""What a checkpoint holds: its format is read by later versions."""

import io
import json
import os
import pickle
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from poa_hf import PoaTrainer
from poa_hf.runs.checksums import write_checksums
from poa_hf.runs.lock import locked_run
from poa_hf.runs.soundness import checkpoint_damage

from ..runs.folders import flip_bit
from .processes import in_processes, train
from .test_trainer import arguments, images, new_model


def test_files_and_keys_of_a_checkpoint(tmp_path):
    PoaTrainer(new_model(), arguments(tmp_path, max_steps=2), images()).train()
    checkpoint = tmp_path / "checkpoint-2"
    assert {path.name for path in checkpoint.iterdir()} == {
        "checksums.json", "compute.json", "config.json", "counts.json", "data_state_0.json", "model.safetensors",
        "optimizer.bin", "preprocessor_config.json", "random_states_0.pkl", "trainer_state.json",
    }  # fmt: skip
    content = {path.stem: json.loads(path.read_text()) for path in checkpoint.glob("*.json")}
    assert content["counts"] == {"global_batch_size": 4, "nonfinite_steps": 0, "in_a_row": 0}
    assert content["data_state_0"] == {"batch": 2, "seed": 0, "global_batch_size": 4, "num_images": 16}
    assert content["trainer_state"]["global_step"] == 2 and len(content["trainer_state"]["log_history"]) == 2
    listed = set(json.loads((checkpoint / "checksums.json").read_text())["files"])
    assert listed == {path.name for path in checkpoint.iterdir()} - {"checksums.json"}
    of_model = set(json.loads((tmp_path / "checksums.json").read_text())["files"])
    assert of_model == {"compute.json", "config.json", "model.safetensors", "preprocessor_config.json"}
    optimizer = torch.load(checkpoint / "optimizer.bin", weights_only=True)
    assert {"multipliers", "is_backbone", "lr", "params"} <= optimizer["param_groups"][0].keys()


def test_nothing_of_accelerate_is_left_registered(tmp_path):
    trainer = PoaTrainer(new_model(), arguments(tmp_path, max_steps=1), images())
    trainer.train()
    (tmp_path / "plain").mkdir()
    trainer.accelerator.save_state(str(tmp_path / "plain"))  # with Accelerate's own file of the model
    assert (tmp_path / "plain" / "model.safetensors").exists() and not (tmp_path / "plain" / "config.json").exists()


class SavesWhenTrainingBegins(TrainerCallback):
    """Saves a checkpoint before the first step of a run, and ends it there if asked to."""

    trainer: PoaTrainer

    def __init__(self, stops: bool):
        self.stops = stops

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.save_state()
        if self.stops:
            raise KeyboardInterrupt


def stream() -> Dataset:
    return Dataset.from_dict({"image": images()}).to_iterable_dataset(num_shards=3)


@pytest.mark.parametrize("data", [images, stream])
def test_a_checkpoint_before_the_first_step_leaves_no_batch_out(data, tmp_path):
    def train(folder, *stops: bool, **options) -> list[str]:
        callbacks = [SavesWhenTrainingBegins(each) for each in stops]
        args = arguments(folder, log_image_ids=True, quiet=True, **options)
        trainer = PoaTrainer(new_model(), args, data(), callbacks=callbacks)
        for callback in callbacks:
            callback.trainer = trainer
        trainer.train(resume_from_checkpoint=True)
        return (folder / "image_ids-0.jsonl").read_text().splitlines()

    expected = train(tmp_path / "whole")
    for steps in (0, 2):  # of the run, before it is started again and ends at once, and then once more
        folder = tmp_path / str(steps)
        if steps:
            train(folder, max_steps=steps)
        with pytest.raises(KeyboardInterrupt):
            train(folder, True)
        assert train(folder, False) == expected


class SecondRun(TrainerCallback):
    """Starts another run in the folder of the one that calls it."""

    def __init__(self, **options):
        self.options = options
        self.refusal = ""

    def on_step_end(self, args, state, control, **kwargs):
        before = contents(Path(args.output_dir))
        second = PoaTrainer(new_model(), arguments(Path(args.output_dir), **self.options), images())
        try:
            second.train()
        except ValueError as error:
            self.refusal = str(error)
        assert contents(Path(args.output_dir)) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("options", [{}, {"overwrite_output_dir": True}, {"resume_from_checkpoint": True}])
def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(tmp_path, options):
    second = SecondRun(max_steps=1, **options)
    PoaTrainer(new_model(), arguments(tmp_path / "run", max_steps=2, save_steps=1), images(), [second]).train()
    assert "run is in use by another run (process" in second.refusal
    assert not (tmp_path / "run" / ".lock").exists()


def refused(folder: str) -> None:
    with pytest.raises(ValueError, match="run is in use by another run"):
        train(folder, {}, {"max_steps": 1})


@pytest.mark.timeout(200)
def test_every_process_learns_that_the_folder_is_in_use(tmp_path):
    with locked_run(tmp_path / "run"):
        in_processes(2, refused, str(tmp_path / "run"))


def test_data_that_cannot_be_read_leaves_no_folder(tmp_path):
    trainer = PoaTrainer(new_model(), arguments(tmp_path / "a" / "run", max_steps=2), [b"no image"] * 8)
    with pytest.raises(ValueError):
        trainer.train()
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    PoaTrainer(new_model(), arguments(run, max_steps=3, save_steps=1), images()).train()
    return run


@pytest.mark.parametrize("part", ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "compute.json"])
def test_a_run_goes_on_from_the_last_sound_checkpoint_bit_for_bit(whole_run, tmp_path, part, caplog):
    run = shutil.copytree(whole_run, tmp_path / "run")
    newest = run / "checkpoint-3"
    flip_bit(newest / part, 0.5)
    PoaTrainer(new_model(), arguments(run, max_steps=3, resume_from_checkpoint=True), images()).train()
    assert f"{newest} is damaged ({part} has another content than was written" in caplog.text
    assert "resuming from checkpoint-2 instead" in caplog.text
    resumed = load_file(run / "model.safetensors")
    for name, value in load_file(whole_run / "model.safetensors").items():
        assert torch.equal(value, resumed[name])
    assert checkpoint_damage(newest) is None and (run / "abandoned-checkpoint-3").exists()


def test_an_optimizer_of_another_model_is_refused_in_a_sentence(tmp_path):
    PoaTrainer(new_model(), arguments(tmp_path, max_steps=2), images()).train()
    checkpoint = tmp_path / "checkpoint-2"
    path = checkpoint / "optimizer.bin"
    saved = torch.load(path, weights_only=True)
    other = {**saved, "state": {i: {**s, "exp_avg": s["exp_avg"][None, None]} for i, s in saved["state"].items()}}
    for state, said in ((other, "an exp_avg has the shape"), ({**saved, "param_groups": []}, "parameter groups")):
        torch.save(state, path)
        write_checksums(checkpoint)
        with pytest.raises(ValueError, match=rf"checkpoint-2/optimizer.bin does not .*{said}"):
            PoaTrainer(new_model(), arguments(tmp_path, max_steps=3, resume_from_checkpoint=True), images()).train()


class Malicious:
    def __reduce__(self):
        return os.system, ("touch pickle-ran",)


@pytest.mark.parametrize("name", ["random_states_0.pkl", "optimizer.bin"])
@pytest.mark.parametrize("checksums", [True, False])
def test_no_pickle_of_a_checkpoint_is_run(tmp_path, name, checksums, monkeypatch):
    monkeypatch.chdir(tmp_path)
    PoaTrainer(new_model(), arguments(tmp_path / "run", max_steps=2), images()).train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    for content in (pickle.dumps(Malicious()), zipped(Malicious())):
        (checkpoint / name).write_bytes(content)
        write_checksums(checkpoint)
        if not checksums:
            (checkpoint / "checksums.json").unlink()
        trainer = PoaTrainer(new_model(), arguments(tmp_path / "run", max_steps=2), images())
        with nullcontext() if name == "random_states_0.pkl" else pytest.raises(ValueError, match="optimizer.bin is"):
            trainer.train(resume_from_checkpoint=True)
        assert not (tmp_path / "pickle-ran").exists()


def zipped(value) -> bytes:
    torch.save(value, buffer := io.BytesIO())
    return buffer.getvalue()


def test_weights_of_other_shapes_are_refused_in_a_sentence(tmp_path):
    PoaTrainer(new_model(), arguments(tmp_path, max_steps=2), images()).train()
    checkpoint = tmp_path / "checkpoint-2"
    weights = load_file(checkpoint / "model.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.dim() == 2)
    for change in ({name: weights[name][:-1].clone()}, {name: weights[name][None].clone()}, {name: None}):
        changed = {key: tensor for key, tensor in (weights | change).items() if tensor is not None}
        save_file(changed, checkpoint / "model.safetensors", {"format": "pt"})
        write_checksums(checkpoint)
        with pytest.raises(ValueError, match=f"{checkpoint} (cannot be loaded|lacks 1 parameters)"):
            PoaTrainer(new_model(), arguments(tmp_path, max_steps=3), images()).train(resume_from_checkpoint=True)
