"""Weights in several files, as those of models above 5 GB are; here from 20 kB on."""

import json
import shutil

import pytest
import torch

from poa_hf import PoaForPreTraining, PoaTrainer
from poa_hf.models.complete import load_complete
from poa_hf.publishing.export import extract_to
from poa_hf.publishing.formats import format as formats
from poa_hf.runs.checkpoints import MAX_SHARD_SIZE, checkpoints
from poa_hf.runs.load import load_run
from poa_hf.training import checkpointing

from .test_trainer import arguments, images, metrics, new_model

INDEX = "model.safetensors.index.json"


@pytest.fixture
def small_files(monkeypatch):
    monkeypatch.setattr(checkpointing, "MAX_SHARD_SIZE", "20KB")
    monkeypatch.setattr(formats, "MAX_SHARD_SIZE", "20KB")


def weight_files(folder) -> set[str]:
    return {path.name for path in folder.glob("model*")}


def assert_several(folder) -> None:
    listed = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    assert len(listed) > 2 and weight_files(folder) == listed | {INDEX}
    assert max((folder / name).stat().st_size for name in listed) < 30_000


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def train(folder, **options) -> PoaForPreTraining:
    model = new_model()
    PoaTrainer(model, arguments(folder, **options), images()).train()
    return model


def test_the_limit_is_what_the_hub_advises():
    assert MAX_SHARD_SIZE == "5GB"


def test_a_run_is_saved_resumed_and_loaded(tmp_path, small_files):
    whole = train(tmp_path / "whole", save_steps=2)
    for folder in (tmp_path / "whole", tmp_path / "whole" / "checkpoint-2"):
        assert_several(folder)
    assert equal(load_run(tmp_path / "whole"), whole)
    options = dict(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert equal(train(tmp_path / "resumed", **options), whole)
    assert [line["step"] for line in metrics(tmp_path / "resumed")] == [3, 4]


def test_files_of_another_save_do_not_stay(tmp_path, small_files, monkeypatch):
    train(tmp_path, max_steps=1, save_steps=1)
    assert_several(tmp_path)
    monkeypatch.setattr(checkpointing, "MAX_SHARD_SIZE", "5GB")
    one_file = train(tmp_path, max_steps=2, resume_from_checkpoint="true")
    assert weight_files(tmp_path) == {"model.safetensors"} and equal(load_run(tmp_path), one_file)
    monkeypatch.setattr(checkpointing, "MAX_SHARD_SIZE", "20KB")
    several = train(tmp_path, max_steps=3, resume_from_checkpoint="true")
    assert_several(tmp_path)
    assert equal(load_run(tmp_path), several), "an old model.safetensors is loaded in the place of several files"
    monkeypatch.setattr(checkpointing, "MAX_SHARD_SIZE", "5GB")
    train(tmp_path, max_steps=1, overwrite_output_dir=True)
    assert weight_files(tmp_path) == {"model.safetensors"}


def test_a_missing_file_makes_a_checkpoint_incomplete(tmp_path, small_files):
    train(tmp_path, save_steps=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4"]
    checkpoint = tmp_path / "checkpoint-4"
    next(iter(sorted(checkpoint.glob("model-0000*")))).unlink()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]
    with pytest.raises(ValueError, match="checkpoint-4 (cannot be loaded|lacks)"):
        load_complete(checkpoint)
    (checkpoint / INDEX).write_text("{")
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]


def test_extracted_sizes_are_in_several_files_too_and_are_replaced(tmp_path, small_files):
    model, output = new_model(), tmp_path / "extracted"
    size = model.config.backbone_config.space.full
    extract_to(model, size, output)
    assert_several(output)
    stock = type(model.teacher.extract(size)).from_pretrained(output)
    assert equal(stock, model.teacher.extract(size))
    extract_to(model, size, output, overwrite=True)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds more than an extracted model"):
        extract_to(model, size, output, overwrite=True)
    shutil.rmtree(output)
