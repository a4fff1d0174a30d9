"""The repository of a run: what is pushed of a checkpoint, and what a push replaces."""

import hashlib
import json

import pytest

from poa_hf.runs.publishable import resumable_recipe
from poa_hf.runs.run_repo import (
    checkpoint_files,
    checkpoint_folder,
    holds_a_run,
    is_ours,
    is_part,
    outdated_files,
    run_files,
    run_page,
)
from poa_hf.runs.soundness import checkpoint_damage

from ..loopback_hub.card_rules import validate_card
from .folders import checkpoint, flip_bit


def write(files, folder):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return folder


def test_a_pushed_checkpoint_is_sound_and_without_paths_and_pickles(tmp_path):
    folder = checkpoint(tmp_path / "secret", 4, checksums=False)
    (folder / "random_states_0.pkl").write_bytes(b"pickled")
    (folder / "anything.txt").write_text("notes")
    state = json.loads((folder / "trainer_state.json").read_text())
    state["best_model_checkpoint"] = str(folder.with_name("checkpoint-2"))
    (folder / "trainer_state.json").write_text(json.dumps(state))
    from poa_hf.runs.checksums import write_checksums

    write_checksums(folder)
    pushed = write(checkpoint_files(folder), tmp_path / "checkpoint-4")
    assert checkpoint_damage(pushed) is None
    assert {path.name for path in folder.iterdir()} - {path.name for path in pushed.iterdir()} == {
        "random_states_0.pkl", "anything.txt",
    }  # fmt: skip
    assert not [path for path in pushed.iterdir() if b"secret" in path.read_bytes()]
    assert json.loads((pushed / "trainer_state.json").read_text())["best_model_checkpoint"] == "checkpoint-2"
    for name, entry in json.loads((pushed / "checksums.json").read_text())["files"].items():
        content = (pushed / name).read_bytes()
        assert entry == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_a_damaged_checkpoint_is_not_pushed(tmp_path):
    folder = checkpoint(tmp_path, 4, checksums=True)
    flip_bit(folder / "optimizer.bin")
    with pytest.raises(ValueError, match="is damaged .optimizer.bin has another content than was written"):
        checkpoint_files(folder)


@pytest.mark.parametrize("name", ["optimizer.bin", "trainer_state.json", "config.json"])
def test_what_a_link_leads_to_is_not_pushed(tmp_path, name):
    folder = checkpoint(tmp_path / "run", 4, checksums=True)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="leads to a file outside"):
        checkpoint_files(folder)


def test_the_log_ends_at_the_step_that_is_pushed(tmp_path):
    folder = checkpoint(tmp_path / "run", 4, checksums=True)
    lines = [json.dumps({"step": step}) for step in (2, 4, 6)]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 8, "lo']))
    (tmp_path / "run" / "config.yaml").write_text("dataset_name: /data/me/photos\noutput_dir: /data/run\nseed: 3\n")
    (tmp_path / "scratch").mkdir()
    files = run_files(tmp_path / "run", folder, 4, tmp_path / "scratch")
    assert files["metrics.jsonl"].read_text() == "\n".join(lines[:2]) + "\n"
    assert files["config.yaml"].read_text() == "dataset_name: ./photos\nseed: 3\n"
    assert files["model.safetensors"] == folder / "model.safetensors"


@pytest.mark.parametrize(
    ("recipe", "pushed"),
    [
        ({"dataset_name": "me/photos", "init_from": "facebook/dinov2-small"}, None),
        ({"dataset_name": "textures", "report_to": "wandb", "run_name": "a", "project": "b"}, None),
        (
            {"dataset_revision": "refs/pr/1", "data_dir": "a/b/c", "data_files": ["a/b/*.parquet", "test=a/**/x.zip"]},
            None,
        ),
        ({"data_files": ["/data/a.parquet", "test=~/b.zip"]}, {"data_files": ["a.parquet", "test=b.zip"]}),
        ({"dataset_name": "/data/mnist"}, {"dataset_name": "./mnist"}),  # and not a dataset of the Hub
        ({"dataset_name": "./data/mnist"}, {"dataset_name": "./mnist"}),
        ({"output_dir": "a", "resume_from_checkpoint": None, "foreign_teacher": "~/t"}, {"foreign_teacher": "./t"}),
    ],
)
def test_a_recipe_stays_resumable(recipe, pushed):
    assert resumable_recipe(recipe) == (recipe if pushed is None else pushed)


PRESENT = [
    *("README.md", "model.safetensors", "metrics.jsonl", "notes.txt", "last-checkpoint/data_state_1.json"),
    *("last-checkpoint/counts.json", "checkpoint-2/counts.json", "checkpoint-6/counts.json"),
]


@pytest.mark.parametrize(
    ("pushed", "outdated"),
    [
        (["model.safetensors"], ["checkpoint-6/counts.json"]),  # which the run has gone back from
        (["model-00001-of-00002.safetensors"], ["checkpoint-6/counts.json", "model.safetensors"]),
        (
            ["model.safetensors", "last-checkpoint/counts.json"],
            ["checkpoint-2/counts.json", "checkpoint-6/counts.json", "last-checkpoint/data_state_1.json"],
        ),
        (["model.safetensors", "checkpoint-4/counts.json"], ["checkpoint-6/counts.json"]),
        (["model.safetensors", "checkpoint-2/other.json"], ["checkpoint-2/counts.json", "checkpoint-6/counts.json"]),
    ],
)
def test_a_push_replaces_what_it_is_newer_than(pushed, outdated):
    assert outdated_files(PRESENT, dict.fromkeys(pushed), step=4) == outdated


def test_files_of_others_beside_a_model_are_neither_pushed_nor_deleted(tmp_path):
    folder = checkpoint(tmp_path / "run", 4)
    (folder / "model_mine.safetensors").write_bytes(b"mine")
    (tmp_path / "scratch").mkdir()
    assert set(run_files(tmp_path / "run", folder, 4, tmp_path / "scratch")) & {"model_mine.safetensors"} == set()
    present = ["model_mine.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    assert outdated_files(present, {"model.safetensors": None}, step=4) == sorted(present[1:])


def test_kinds_of_repositories_and_files():
    assert holds_a_run([]) is None and holds_a_run(["README.md", "LICENSE"]) is None
    assert holds_a_run(["config.json", "training_args.json"]) is True
    assert holds_a_run(["config.json"]) is False and holds_a_run(["training_args.json", "sizes.json"]) is False
    assert [checkpoint_folder(path) for path in ("last-checkpoint/a", "checkpoint-3/a/b", "checkpoint-x/a", "a/b")] == [
        "last-checkpoint", "checkpoint-3", None, None,
    ]  # fmt: skip
    assert is_part("model-00001-of-00002.safetensors") and is_part("data_state_12.json") and is_part("checksums.json")
    for name in ("model/../../x.safetensors", "random_states_0.pkl", "pytorch_model/x.pt", "x.py", "model.bin"):
        assert not is_part(name)


@pytest.mark.parametrize("folders", [[], ["last-checkpoint"], ["checkpoint-2", "checkpoint-4"]])
def test_the_page_is_taken_by_the_hub_and_says_how_to_go_on(folders):
    page = run_page("me/my-run", "poa_vit, 6 sizes from 32x1 to 64x2", 4, 6, folders)
    assert is_ours(page) and not is_ours(b"# My own page")
    text = page.decode()
    assert validate_card(text) == ([], [])
    assert ("poa resume me/my-run" in text) == bool(folders) and "at step 4 of 6" in text
    assert "at its last step, 6" in run_page("me/my-run", "poa_vit", 6, 6, folders).decode()
