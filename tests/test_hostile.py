"""Every command over folders and repositories of strangers: nothing of theirs runs, and each mistake is one sentence.

The commands are those of `cli.main.COMMANDS`, so that a new one is not forgotten. A canary is a file that would exist
if a stranger's code had run; what lies outside the folder must stay as it was.
"""

import builtins
import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from poa_hf import PoaForPreTraining
from poa_hf.cli.main import COMMANDS, main
from poa_hf.data.processor import evaluation_processor

from .conftest import QUICKSTART, TINY, run_python, save_run, tiny_config
from .malformed import (
    configuration_of_other_kinds,
    edit,
    empty_configuration,
    empty_weights,
    folders_in_place_of_files,
    huge_depth,
    huge_width,
    many_sizes,
    names_for_terminals,
    nested_configuration,
    nested_records,
    no_configuration,
    records_of_other_kinds,
    unknown_type,
    weights_of_a_giant,
    weights_that_are_not_numbers,
    wrong_shapes,
)

AUTO_MAP = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoImageProcessor": "evil.Processor"}
FEW_IMAGES = "--dataset_name textures --max_train_images 8 --max_test_images 8 --num_workers 0 --tasks knn --k 3"
SMALL_RUN = "--max_steps 1 --per_device_train_batch_size 2 --dataloader_num_workers 0 --disable_tqdm"


def arguments(command: str, target: str, out: Path) -> list[list[str]]:
    """The ways in which a command is given what a stranger made; an unknown command gets it as its one argument."""
    file = f"{target}/pytorch_model.bin"
    known = {
        "pretrain": [
            ["--init_from", target, *SMALL_RUN.split(), "--output_dir", str(out)],
            ["--config", QUICKSTART, *TINY.split(), "--init_from", file, "--output_dir", str(out)],
            ["--config", f"{target}/config.yaml"],
        ],
        "extract": [[target, "--size", "small", "--output", str(out)]],
        "evaluate": [[target, *FEW_IMAGES.split(), "--output", str(out)]],
        "embed": [
            [target, *"--dataset_name textures --max_images 4 --num_workers 0 --output".split(), str(out)],
            ["--index", target, "--output", f"{out}.html"],
        ],
        "select": [[target, "--max_params", "1G"]],
        "report": [[target, "--dataset_name", "textures", "--images", "1", "--output", str(out)]],
        "convert": [[each, "--family", "vit", "--output", str(out)] for each in (target, file)],
        "push": [[target, "--size", "small", "--namespace", "me", "--dry_run"]],
    }
    return known.get(command, [[target]])


class Opener:
    """Pickled, it makes the canary when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sound")
    save_run(PoaForPreTraining(tiny_config()), folder / "run")
    stock = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
    Dinov2Model(stock).save_pretrained(folder / "stock")
    for each in ("run", "stock"):
        evaluation_processor(32).save_pretrained(folder / each)
    return {each: folder / each for each in ("run", "stock")}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the stranger's `model`, and outside of it the canary and what must not be changed."""
    monkeypatch.chdir(tmp_path)

    def no_answer(*words):
        raise AssertionError("a question was asked")

    monkeypatch.setattr(builtins, "input", no_answer)
    monkeypatch.setattr(sys, "stdin", NoInput())
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.yaml").write_text("about: TOP SECRET\n")
    (outside / "reports").mkdir()
    return tmp_path


class NoInput:
    def isatty(self) -> bool:
        return True

    def __getattr__(self, name):
        raise AssertionError(f"the standard input was asked for {name}")


def plant(folder: Path, canary: Path) -> Path:
    """Put code, pickles and YAML tags into a folder, wherever a library may look for them."""
    code = f"open({str(canary)!r}, 'w')\n"
    for name in ("evil.py", "modeling_evil.py", "__init__.py", "sitecustomize.py", "conftest.py", "model.py"):
        (folder / name).write_text(code)
    for file in ("config.json", "preprocessor_config.json"):
        edit(folder / file, auto_map=AUTO_MAP, custom_pipelines={"feature-extraction": {"impl": "evil.Pipeline"}})
    for file in ("pytorch_model.bin", "optimizer.bin", "training_args.bin", "random_states_0.pkl", "scheduler.bin"):
        (folder / file).write_bytes(pickle.dumps(Opener(canary)))
    tag = f"!!python/object/apply:builtins.open [{str(canary)!r}, 'w']\n"
    (folder / "config.yaml").write_text(f"output_dir: {tag}")
    return folder


def code_of_its_own(sound, folder):
    shutil.copytree(sound["stock"], folder)
    edit(folder / "config.json", model_type="evil", architectures=["EvilModel"])
    edit(folder / "preprocessor_config.json", image_processor_type="EvilProcessor")


def pickle_only(sound, folder):
    shutil.copytree(sound["run"], folder)
    (folder / "model.safetensors").unlink()


def run_with_code(sound, folder):
    shutil.copytree(sound["run"], folder)
    content = json.loads((folder / "config.json").read_text())
    content["backbone_config"]["auto_map"] = AUTO_MAP
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": "<script>"}\n{"step": 2}\n')


def stock_with_code(sound, folder):
    shutil.copytree(sound["stock"], folder)


def adapter(sound, folder):
    shutil.copytree(sound["stock"], folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/model", "peft_type": "LORA"}')


def kernel_from_the_hub(sound, folder):
    shutil.copytree(sound["run"], folder)
    content = json.loads((folder / "config.json").read_text())
    content["backbone_config"]["_attn_implementation"] = "evil/kernel"
    (folder / "config.json").write_text(json.dumps(content))


def checkpoints_only(sound, folder):
    shutil.copytree(sound["run"], folder / "checkpoint-5")
    plant(folder / "checkpoint-5", folder.parent / "canary")
    for name in ("trainer_state.json", "counts.json", "data_state_0.json"):
        (folder / "checkpoint-5" / name).write_text("{}")


def marked(kinds, slow=()) -> list:
    """Kinds as parameters of a test; commands that a kind does not stop take seconds each."""
    return [pytest.param(kind, id=kind.__name__, marks=pytest.mark.slow if kind in slow else ()) for kind in kinds]


HOSTILE = marked(
    [code_of_its_own, pickle_only, run_with_code, stock_with_code, adapter, kernel_from_the_hub, checkpoints_only],
    slow=[run_with_code, stock_with_code, adapter, checkpoints_only],
)


def walk(target: str, place: Path, capfd, commands=COMMANDS, statuses=(0, 2)) -> None:
    """Run every command; nothing may run, ask, or change what lies outside, and each refusal is one sentence."""
    before = contents(place / "outside")
    for command in commands:
        for number, argv in enumerate(arguments(command, target, place / "out" / command)):
            (place / "out").mkdir(exist_ok=True)
            status = main([command, *argv])
            shown = capfd.readouterr()
            assert status in statuses, (command, argv, shown)
            assert "Traceback" not in shown.err, (command, shown.err)
            assert "\x1b" not in shown.out and "TOP SECRET" not in shown.out + shown.err, (command, shown)
            if status == 2:
                last = shown.err.strip().splitlines()[-1]
                assert last.startswith("poa: ") and last.endswith((".", "?")) and len(last) < 2000, (command, shown.err)
            assert not (place / "canary").exists(), (command, number)
            for path in (path for path in (place / "out").rglob("*") if path.suffix in (".html", ".md")):
                text = path.read_text()
                assert "\x1b" not in text and "2J<script" not in text, (command, path)
                assert path.suffix != ".md" or not re.search(r"(?<!\\)\]\(javascript", text.split("---")[-1]), path
            shutil.rmtree(place / "out")
    assert contents(place / "outside") == before


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_command_runs_anything_of_a_folder(sound, place, capfd, kind):
    folder = place / "model"
    kind(sound, folder)
    plant(folder, place / "canary")
    walk(str(folder), place, capfd)


@pytest.mark.parametrize(
    "kind", marked([code_of_its_own, pickle_only, run_with_code, adapter], slow=[pickle_only, adapter])
)
def test_no_command_runs_anything_of_a_repository(sound, place, capfd, kind, hub):
    folder = place / "model"
    kind(sound, folder)
    plant(folder, place / "canary")
    hub.add_repo("evil/model", {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})
    shutil.rmtree(folder)
    walk("evil/model", place, capfd)
    assert not [request for request in hub.requests if request.path.endswith((".py", ".bin", ".pkl"))]


def test_no_command_follows_a_link_out_of_a_folder(sound, place, capfd, hub):
    folder, outside = place / "model", place / "outside"
    shutil.copytree(sound["run"], folder)
    for name in ("config.yaml", "card.yaml", "evaluations.json", "metrics.jsonl", "training_args.json", "compute.json"):
        (folder / name).symlink_to(outside / "secret.yaml")
    for name in ("latency-cpu-b1.json", ".unfinished-evaluations.json", "image_ids-0.jsonl", ".lock"):
        (folder / name).symlink_to(outside / "new.json")
    (folder / "report").symlink_to(outside / "reports")
    (folder / "checkpoint-9").symlink_to(outside)
    walk(str(folder), place, capfd)
    for argv in (
        ["report", str(folder), "--dataset_name", "textures", "--images", "1"],
        ["evaluate", str(folder), *FEW_IMAGES.split()],
        ["pretrain", "--config", QUICKSTART, *TINY.split(), "--output_dir", str(folder), "--overwrite_output_dir"],
    ):
        before = contents(outside)
        assert main(argv) in (0, 2), argv
        assert "Traceback" not in capfd.readouterr().err
        assert contents(outside) == before, argv


MALFORMED = marked(
    [
        *(unknown_type, empty_configuration, no_configuration, nested_configuration, configuration_of_other_kinds),
        *(huge_width, huge_depth, many_sizes, wrong_shapes, weights_that_are_not_numbers, weights_of_a_giant),
        *(empty_weights, records_of_other_kinds, nested_records, folders_in_place_of_files, names_for_terminals),
    ],
    slow=[
        *(empty_configuration, wrong_shapes, empty_weights),
        *(records_of_other_kinds, nested_records, folders_in_place_of_files),
    ],
)


@pytest.mark.parametrize("kind", MALFORMED)
def test_every_command_takes_a_malformed_folder_or_says_what_is_wrong(sound, place, capfd, kind):
    import resource

    folder = place / "model"
    shutil.copytree(sound["run"], folder)
    kind(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    walk(str(folder), place, capfd, [command for command in COMMANDS if command != "convert"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB


@pytest.mark.slow
@pytest.mark.parametrize("files", [["optimizer.bin"], ["random_states_0.pkl", "scheduler.bin", "sampler.bin"]], ids=str)
def test_a_resumed_run_reads_no_pickle(place, capfd, files):
    assert main(["pretrain", "--config", QUICKSTART, *TINY.split(), "--save_steps", "1", "--output_dir", "run"]) == 0
    for path in Path("run").rglob("checksums.json"):  # a stranger would write them anew
        path.unlink()
    for checkpoint in Path("run").glob("checkpoint-*"):
        for name in files:
            (checkpoint / name).write_bytes(pickle.dumps(Opener(place / "canary")))
    capfd.readouterr()
    assert main(["resume", "run", "--max_steps", "3"]) == (2 if files == ["optimizer.bin"] else 0)
    assert "Traceback" not in capfd.readouterr().err and not (place / "canary").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluate", "report", "select", "check"])
def test_a_terminal_is_never_asked(sound, place, command):
    """With a real terminal that would answer yes to every question."""
    import pty

    folder = place / "model"
    code_of_its_own(sound, folder)
    plant(folder, place / "canary")
    [argv, *_] = arguments(command, str(folder), place / "out")
    terminal, side = pty.openpty()
    os.write(terminal, b"y\ny\ny\n")
    code = f"import os, sys; os.dup2({side}, 0); from poa_hf.cli.main import main; sys.exit(main({[command, *argv]!r}))"
    import subprocess

    result = subprocess.run(
        [sys.executable, "-c", code], pass_fds=[side], capture_output=True, text=True, timeout=120, cwd=place,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    os.close(terminal), os.close(side)
    assert result.returncode == 2 and "Traceback" not in result.stderr and "[y/N]" not in result.stdout + result.stderr
    assert not (place / "canary").exists()


@pytest.mark.slow
def test_code_beside_the_data_is_not_imported(sound, place):
    """A folder that a user has changed into is not on the path of Python modules of the command."""
    folder = place / "model"
    stock_with_code(sound, folder)
    plant(folder, place / "canary")
    poa = Path(sys.executable).with_name("poa")
    if not poa.exists():
        pytest.skip("the command is not installed")
    import subprocess

    subprocess.run([poa, "select", "."], capture_output=True, cwd=folder, timeout=120, env={**os.environ})
    assert not (place / "canary").exists()
    run_python("-P", "-m", "poa_hf.cli", "check", ".", cwd=folder, check=False)
    assert not (place / "canary").exists()
