import json
import os
from pathlib import Path

import pytest

from poa_hf.runs.checkpoints import (
    check_architecture,
    checkpoints,
    checkpoints_with_model,
    find_checkpoint,
    has_weights,
    missing_parts,
    prune,
    replace_model,
    start_folder,
)
from poa_hf.runs.layout import CHECKPOINT_PARTS
from poa_hf.runs.load import model_step, resolve_run

from ..conftest import tiny_config

PARTS = (*CHECKPOINT_PARTS, "model.safetensors", "optimizer.bin")


def checkpoint(run: Path, step: int, *without: str) -> Path:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in PARTS:
        if name not in without:
            (folder / name).write_text("{}")
    return folder


def steps(paths) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_that_lacks_a_part_is_not_resumed_from(tmp_path, part):
    checkpoint(tmp_path, 5)
    broken = checkpoint(tmp_path, 10, part)
    assert missing_parts(broken) == [part] and steps(checkpoints(tmp_path)) == ["checkpoint-5"]
    assert find_checkpoint(tmp_path, True, False) == tmp_path / "checkpoint-5"
    with pytest.raises(ValueError, match=f"is not a checkpoint that can be resumed from .it lacks {part}.: those in"):
        find_checkpoint(tmp_path, str(broken), False)
    # but its model may be whole
    whole = part not in ("config.json", "model.safetensors")
    assert resolve_run(tmp_path).name == ("checkpoint-10" if whole else "checkpoint-5")
    assert steps(checkpoints_with_model(tmp_path)) == ["checkpoint-5", "checkpoint-10"][: 1 + whole]


def test_the_state_of_deepspeed_is_a_folder(tmp_path):
    folder = checkpoint(tmp_path, 5, "optimizer.bin")
    (folder / "pytorch_model").mkdir()
    assert missing_parts(folder) == []


def test_weights_in_parts_are_whole_if_all_of_the_index_exist(tmp_path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert not has_weights(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").touch()
    assert has_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert not has_weights(tmp_path)


def test_checkpoints_are_ordered_by_step_and_other_folders_are_none(tmp_path):
    for step in (100, 9, 20):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    assert steps(checkpoints(tmp_path)) == ["checkpoint-9", "checkpoint-20", "checkpoint-100"]
    assert model_step(tmp_path) == 100
    prune(tmp_path, 1, best_step=9)
    assert steps(checkpoints(tmp_path)) == ["checkpoint-9", "checkpoint-100"]
    prune(tmp_path, None)
    assert len(checkpoints(tmp_path)) == 2


def test_what_a_folder_can_be_used_for(tmp_path):
    assert find_checkpoint(tmp_path / "new", None, False) is None and find_checkpoint(tmp_path, True, False) is None
    run = checkpoint(tmp_path / "run", 5).parent
    with pytest.raises(ValueError, match="holds another run: give another output_dir"):
        find_checkpoint(run, "false", False)
    assert find_checkpoint(run, False, overwrite=True) is None
    other = checkpoint(tmp_path / "other", 7)
    with pytest.raises(ValueError, match="holds another run than"):
        find_checkpoint(run, str(other), False)
    assert find_checkpoint(run, str(other), overwrite=True) == find_checkpoint(tmp_path / "new", other, False) == other
    with pytest.raises(ValueError, match="it does not exist.: those in .* are .*checkpoint-5"):
        find_checkpoint(run, "nowhere", False)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not a folder that can be written to"):
        find_checkpoint(tmp_path / "file" / "run", None, False)


def test_going_back_puts_later_checkpoints_aside(tmp_path):
    for step in (1, 2, 3):
        checkpoint(tmp_path, step)
    (tmp_path / "abandoned-checkpoint-3").mkdir()
    (tmp_path / "config.json").touch()
    (tmp_path / ".unfinished-checkpoint-4").mkdir()
    start_folder(tmp_path, tmp_path / "checkpoint-2", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["abandoned-checkpoint-3", "checkpoint-1", "checkpoint-2"]
    assert (tmp_path / "abandoned-checkpoint-3" / "counts.json").exists()


def test_a_model_replaces_another_with_its_configuration_last(tmp_path):
    run, new = tmp_path / "run", tmp_path / "new"
    for folder, files in (
        (run, ("config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "metrics.jsonl")),
        (new, ("config.json", "model.safetensors")),
    ):
        folder.mkdir()
        for name in files:
            (folder / name).write_text(folder.name)
    replace_model(run, new)
    assert sorted(os.listdir(run)) == ["config.json", "metrics.jsonl", "model.safetensors"] and not new.exists()
    assert (run / "config.json").read_text() == "new"


def test_another_architecture_is_named_by_its_first_field(tmp_path):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    check_architecture(tiny_config(koleo_weight=0.5), tmp_path)
    with pytest.raises(ValueError, match=r"has another architecture: its num_prototypes is .*, this model's is \[7\]"):
        check_architecture(tiny_config(num_prototypes=[7]), tmp_path)
