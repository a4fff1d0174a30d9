"""`poa resume me/my-run`: a run that was pushed goes on elsewhere, to the last bit."""

import os
import subprocess
import sys
import time

import pytest
import yaml

from poa_hf.cli.main import main
from poa_hf.runs.run_repo import checkpoint_files
from poa_hf.training.callbacks import EvaluationCallback
from poa_hf.training.trainer import PoaTrainer

from ..conftest import QUICKSTART, TINY
from ..runs.folders import checkpoint
from ..training.campaign import pictures
from ..training.test_trainer import arguments, images, new_model

RUN = [*TINY.split(), "--max_steps", "6", "--save_steps", "1", "--logging_steps", "1", "--hub_strategy", "checkpoint"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The model of the run without a Hub and without interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(["pretrain", "--config", QUICKSTART, *RUN, "--output_dir", str(run)]) == 0
    return (run / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_a_killed_run_goes_on_elsewhere(tmp_path, hub, whole, poa, caplog, monkeypatch, strategy):
    monkeypatch.chdir(tmp_path)
    fault = hub.inject("POST", "/commit/", at=2, hold="before")  # the kill comes while the second push is made
    command = [sys.executable, "-m", "poa_hf.cli", "pretrain", "--config", QUICKSTART, *RUN, "--push_to_hub"]
    environment = {**os.environ, **hub.env(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "--hub_strategy", strategy, "--output_dir", "here/my-run"], env=environment)
    assert fault.reached.wait(120)
    process.kill()
    process.wait()
    pushed = hub.model("me/my-run").branches["main"]
    time.sleep(1)  # the job ends with the run that started it
    fault.release()
    time.sleep(0.5)
    assert hub.model("me/my-run").branches["main"] is pushed
    hub.clear()
    (tmp_path / "here").rename(tmp_path / "gone")
    assert "Step 6 written to runs/my-run" in poa("resume", "me/my-run")
    assert any(text.startswith("Resuming from runs/my-run/checkpoint-") for text in caplog.messages)
    assert (tmp_path / "runs" / "my-run" / "model.safetensors").read_bytes() == whole
    assert hub.model("me/my-run").files()["model.safetensors"] == whole  # pushed to the same place
    lines = (tmp_path / "runs" / "my-run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6
    said = poa("resume", "me/my-run", "--output_dir", "third")  # what has ended is brought here, with its model
    assert "Step 6 written to third" in said and (tmp_path / "third" / "model.safetensors").read_bytes() == whole


def stranger(hub, folder, recipe: dict, repo_id="you/run"):
    files = {f"last-checkpoint/{name}": content if isinstance(content, bytes) else content.read_bytes()
             for name, content in checkpoint_files(checkpoint(folder, 2, checksums=True)).items()}  # fmt: skip
    hub.add_repo(repo_id, {**files, "training_args.json": b"{}", "config.yaml": yaml.safe_dump(recipe).encode()})


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        (
            {"dataset_name": "./leaves"},
            "you/run was run with the dataset_name 'leaves', a folder or file of the machine ",
        ),
        (
            {"attn_implementation": "you/kernel"},
            "you/run computes attention by code of the Hub (you/kernel): give --attn_implementation sdpa, or that one",
        ),
        ({"no_such_field": 1}, "no_such_field is not a known key"),
    ],
)
def test_recipes_of_others_are_sentences(tmp_path, hub, poa, recipe, sentence):
    stranger(hub, tmp_path / "made", recipe)
    assert sentence in poa("resume", "you/run", "--output_dir", tmp_path / "run", status=2)


@pytest.mark.slow
def test_a_run_of_others_is_pushed_on_to_where_it_came_from(tmp_path, hub, poa, monkeypatch):
    options = [*RUN, "--push_to_hub", "--max_steps", "2", "--output_dir", str(tmp_path / "run")]
    assert main(["pretrain", "--config", QUICKSTART, *options]) == 0
    files = hub.model("me/run").files()
    recipe = files["config.yaml"].replace(b"hub_model_id: me/run", b"hub_model_id: me/new")
    hub.add_repo("you/run", {**files, "config.yaml": recipe})
    there = ["you/run", "--output_dir", tmp_path / "there", "--max_steps", "3"]
    assert (
        "'you' is not a namespace of me, whose token this is: leave push_to_hub out (--no_push_to_hub), or begin"
        in (poa("resume", *there, status=2))
    )
    assert "Step 3 written to" in poa("resume", *there, "--no_push_to_hub")
    assert ("model", "me/new") not in hub.repos


def test_a_run_without_a_recipe_says_so(tmp_path, hub, poa):
    stranger(hub, tmp_path / "made", {})
    hub.model("you/run").branches["main"].files.pop("config.yaml")
    said = poa("resume", "you/run", "--output_dir", tmp_path / "run", status=2)
    assert "has no recipe (config.yaml)" in said


@pytest.mark.slow
def test_a_local_dataset_is_named_again(tmp_path, hub, poa, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pictures(tmp_path / "photos")
    options = [*RUN, "--push_to_hub", "--dataset_name", str(data), "--no_streaming", "--max_steps", "2"]
    poa("pretrain", "--config", QUICKSTART, *options, "--output_dir", "run")
    data.rename(tmp_path / "elsewhere")
    hub.clear()
    assert "say where it is here by --dataset_name." in poa("resume", "me/run", "--max_steps", "3", status=2)
    said = poa("resume", "me/run", "--max_steps", "3", "--dataset_name", tmp_path / "elsewhere")
    assert "Step 3 written to runs/run" in said


class Accuracies(EvaluationCallback):
    """Measures that step 1 is the best, after each step."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = True

    def evaluate(self, args, state, model):
        return {"knn_mean": 1 / state.global_step}


@pytest.mark.slow
def test_the_best_checkpoint_goes_along(tmp_path, hub):
    from poa_hf.runs.fetch import fetch_run

    options = dict(push_to_hub=True, hub_strategy="checkpoint", load_best_model_at_end=True, save_steps=1)
    here = arguments(tmp_path / "run", max_steps=3, **options)
    PoaTrainer(new_model(), here, images(), [Accuracies()]).train()
    files = hub.model("me/run").files()
    assert {path.split("/")[0] for path in files if "/" in path} == {"checkpoint-1", "last-checkpoint"}
    assert files["model.safetensors"] == files["checkpoint-1/model.safetensors"]
    fetch_run("me/run", tmp_path / "there")
    there = arguments(tmp_path / "there", max_steps=4, resume_from_checkpoint="true", hub_model_id="me/run", **options)
    trainer = PoaTrainer(new_model(), there, images(), [Accuracies()])
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "there" / "checkpoint-1")
    assert (tmp_path / "there" / "model.safetensors").read_bytes() == files["model.safetensors"]


@pytest.mark.slow
def test_two_processes_fetch_once(tmp_path, hub):
    options = [*RUN, "--push_to_hub", "--max_steps", "2", "--output_dir", str(tmp_path / "run")]
    assert main(["pretrain", "--config", QUICKSTART, *options]) == 0
    hub.clear()
    environment = {**os.environ, **hub.env(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "poa_hf.cli", "resume"]
    there = tmp_path / "there"
    options = ["me/run", "--output_dir", str(there), "--max_steps", "3", "--per_device_train_batch_size", "2"]
    result = subprocess.run([*launched, *options], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "Step 3 written to" in result.stdout and "Step 3 pushed to" in result.stdout
    assert hub.count("GET", "resolve/.*/last-checkpoint/counts.json") == 1
