import json
from pathlib import Path

import pytest

from poa_hf import PoaForPreTraining, PoaTrainer, PoaTrainingArguments
from poa_hf.cli.main import main
from poa_hf.data.textures import TextureDataset
from poa_hf.runs.layout import ENTRIES, RunFolder, is_checkpoint_name, published_patterns

from ..conftest import tiny_config

TINY_RUN = """
dataset_name: textures
max_steps: 2
save_steps: 1
save_total_limit: 2
logging_steps: 1
per_device_train_batch_size: 2
global_crop_size: 32
local_crop_size: 16
num_local_crops: 1
dataloader_num_workers: 0
log_image_ids: true
disable_tqdm: true
model:
  num_prototypes: [8]
  head_hidden_size: 8
  head_bottleneck_size: 4
  backbone_config: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 4, min_hidden_size: 16,
    min_num_hidden_layers: 1, image_size: 32, patch_size: 8}
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_run_and_its_checkpoints_have_one_folder(tmp_path, monkeypatch):
    run = RunFolder.containing(tmp_path / "run")
    assert run == RunFolder.containing(tmp_path / "run" / "checkpoint-30") and run.path == tmp_path / "run"
    assert run.evaluations == tmp_path / "run" / "evaluations.json" and run.checkpoint(7).name == "checkpoint-7"
    assert run.latency("cpu", 1).name == "latency-cpu-b1.json"
    assert run.latency("cuda", 8, compiled=True).name == "latency-cuda-b8-compiled.json"
    monkeypatch.chdir(tmp_path)
    assert RunFolder.containing("run") == run
    assert is_checkpoint_name("checkpoint-10") and not is_checkpoint_name("checkpoint-best")


def test_a_supernet_is_downloaded_without_logs_and_checkpoints():
    patterns = published_patterns()
    assert {"config.json", "model*.safetensors*", "evaluations.json", "card.yaml"} <= set(patterns)
    assert not [pattern for pattern in patterns if "checkpoint" in pattern or "metrics" in pattern]


@pytest.mark.timeout(400)
def test_overwriting_a_run_removes_all_that_belongs_to_it(tmp_path, capsys):
    """Every command writes into a run; another run in its place leaves nothing of it but what is the user's own."""
    run = tmp_path / "run"
    (tmp_path / "tiny.yaml").write_text(TINY_RUN + f"output_dir: {run}\n")
    pretrain = ["pretrain", "--config", str(tmp_path / "tiny.yaml")]
    assert main(pretrain) == 0
    assert main([*pretrain, "--resume_from_checkpoint", str(run / "checkpoint-1")]) == 0  # checkpoint-2 is abandoned
    few = ["--max_train_images", "40", "--max_test_images", "20", "--num_workers", "0"]
    assert main(["evaluate", str(run), "--dataset_name", "textures", "--tasks", "knn", "--k", "5", *few]) == 0
    assert main(["select", str(run), "--device", "cpu"]) == 0
    assert main(["report", str(run), "--images", "1"]) == 0
    for folder in (run, run / "checkpoint-1"):  # safetensors writes weights for their owner only
        assert len({(folder / name).stat().st_mode for name in ("model.safetensors", "config.json")}) == 1
    (run / "skipped_images.jsonl").write_text("")  # all textures can be decoded
    (run / "teacher_features.safetensors").write_text("")  # there was no foreign teacher to cache
    (run / "gram_teacher").mkdir()  # and no Gram teacher
    users = {
        "card.yaml": "contact: me@example.org\n",
        "LICENSE": "Do what you like.\n",
        "notes.txt": "mine",
        "my-model/config.json": "{}",
    }
    for name, text in users.items():
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(text)
    written_by_others = {
        "model*.safetensors*",
        "conversion.json",
        "sizes.json",
        "profile",
        "skipped_images.jsonl",
        "unit_order.json",
        ".*lock",
    }  # and locks for a while
    missing = [e.pattern for e in ENTRIES if e.pattern not in written_by_others and not list(run.glob(e.pattern))]
    assert not missing, "the test does not write these"
    written = names(run) - {"notes.txt", "my-model"}
    described = {path.name for entry in ENTRIES for path in run.glob(entry.pattern)}
    assert written <= described, "files that the layout does not describe"
    assert "abandoned-checkpoint-2" in written

    args = PoaTrainingArguments(
        output_dir=str(run), max_steps=1, per_device_train_batch_size=2, global_crop_size=32, local_crop_size=16,
        num_local_crops=1, dataloader_num_workers=0, save_steps=5, disable_tqdm=True, overwrite_output_dir=True,
    )  # fmt: skip
    PoaTrainer(PoaForPreTraining(tiny_config()), args, train_dataset=TextureDataset()).train()
    new = {"checkpoint-1", "compute.json", "config.json", "metrics.jsonl", "model.safetensors", "training_args.json"}
    assert names(run) == new | {"preprocessor_config.json", "checksums.json", *users, "my-model"} - {
        "my-model/config.json"
    }
    assert all((run / name).read_text() == text for name, text in users.items())
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1]
    assert PoaForPreTraining.from_pretrained(run).config.num_prototypes == tiny_config().num_prototypes
