"""`poa resume RUN`."""

import os
import shutil

import pytest
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from poa_hf import PoaForPreTraining
from poa_hf.cli.main import main

from ..conftest import QUICKSTART, TINY


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "photos"
    options = [*TINY.split(), "--save_steps", "1", "--max_steps", "2"]
    assert main(["pretrain", "--config", QUICKSTART, *options, "--output_dir", str(run)]) == 0
    return run


@pytest.fixture
def run(finished, tmp_path):
    """A copy of the run, which lies elsewhere than where it was made."""
    return shutil.copytree(finished, tmp_path / "moved")


def test_a_stopped_run_goes_on_as_its_recipe_says(run, finished, poa, caplog):
    shutil.rmtree(run / "checkpoint-2")
    (run / "config.json").unlink()
    assert f"Step 2 written to {run}" in poa("resume", run)
    assert f"Resuming from {run}/checkpoint-1, at step 1 of 2." in caplog.messages
    assert (run / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_nothing_is_drawn_that_a_checkpoint_overwrites(run, finished, poa, tmp_path, monkeypatch):
    """Random values take most of the time in which a model is made."""

    class RandomValues(TorchDispatchMode):
        drawn = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            RandomValues.drawn += str(func).startswith(("aten.uniform_", "aten.normal_"))
            return func(*args, **(kwargs or {}))

    make = PoaForPreTraining.__init__

    def watched(self, config):
        with RandomValues():
            make(self, config)

    monkeypatch.setattr(PoaForPreTraining, "__init__", watched)
    shutil.rmtree(run / "checkpoint-2")
    poa("resume", run)
    assert RandomValues.drawn == 0
    assert (run / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    poa("pretrain", "--config", run / "config.yaml", "--output_dir", tmp_path / "new", "--max_steps", "1")
    assert RandomValues.drawn > 0


def test_a_run_that_was_killed_while_writing_its_model_writes_it(run, finished, poa):
    for name in ("config.json", "model.safetensors"):
        (run / name).unlink()
    assert "Step 2 written" in poa("resume", run)
    assert (run / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


def test_a_finished_run_is_left_as_it_is_and_can_be_made_longer(run, poa):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert poa("resume", run) == f"{run} is already at step 2 of 2: raise --max_steps.\n"
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert "Step 3 written" in poa("resume", run, "--max_steps", "3")
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["max_steps"] == 3 and saved["output_dir"] == str(run)
    assert "Step 3 written" in poa("resume", run / "checkpoint-2")
    assert (run / "abandoned-checkpoint-3").is_dir()


def test_a_recipe_in_the_folder_of_its_run_is_not_replaced(run, tmp_path, poa):
    recipe = tmp_path / "new" / "config.yaml"
    recipe.parent.mkdir()
    recipe.write_text(text := "# why this number: ...\nmax_steps: 2\n")
    options = ["pretrain", "--config", recipe, "--output_dir", recipe.parent]
    for more in ([], ["--resume_from_checkpoint"]):
        assert f"{recipe} was not written by a run, whose recipe would replace it" in poa(*options, *more, status=2)
        assert recipe.read_text() == text and os.listdir(recipe.parent) == ["config.yaml"]
    # but the recipe of a run is its own
    resumed = ["pretrain", "--config", run / "config.yaml", "--output_dir", run, "--resume_from_checkpoint"]
    assert poa(*resumed).startswith(f"{run} is already at step 2 of 2")


def test_a_run_goes_on_from_where_one_stands(run, poa, monkeypatch):
    monkeypatch.chdir(run / "checkpoint-1")
    assert f"Step 2 written to {run}" in poa("resume", ".")
    assert (run / "abandoned-checkpoint-2").is_dir()
    monkeypatch.chdir(run)
    assert poa("resume", ".").startswith(f"{run} is already at step 2 of 2")


def test_a_finished_run_of_epochs_is_made_longer_by_epochs(run, poa):
    recipe = (run / "config.yaml").read_text().replace("num_train_epochs: null", "num_train_epochs: 1.0")
    (run / "config.yaml").write_text(recipe)
    assert poa("resume", run) == f"{run} is already at step 2 of 2: raise --num_train_epochs.\n"
    assert "Step 3 written" in poa("resume", run, "--max_steps", "3")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Give RUN: see poa resume --help."),
        (
            ["{run}/nowhere"],
            "nowhere does not exist or is not a folder: give the folder of a run, or its id on the Hub.",
        ),
        (["{run}/report"], "report has no checkpoint to resume from: give the folder of a run, or start one by"),
        (["{run}", "--output_dir", "x"], "--output_dir is given by the run that poa resume goes on with: leave it out"),
        (["{run}", "--max_steps", "1"], "lies after max_steps 1: raise it, or name an earlier checkpoint."),
        (
            ["{run}", "--max_steps", "4", "--per_device_train_batch_size", "8"],
            "4 images a step, this one has 8: keep processes *",
        ),
        (["{run}/checkpoint-7"], "checkpoint-7 does not exist or is not a folder"),
    ],
)
def test_what_cannot_be_resumed_is_a_sentence(run, poa, words, sentence):
    (run / "report").mkdir(exist_ok=True)
    assert sentence in poa("resume", *(word.format(run=run) for word in words), status=2)


def test_a_run_made_in_python_says_how(run, poa):
    (run / "config.yaml").unlink()
    assert "was not started by poa pretrain: run its script again, with train(resume_from_checkpoint=True)." in (
        poa("resume", run, status=2)
    )
