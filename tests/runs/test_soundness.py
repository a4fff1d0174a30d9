import json
import os

import pytest
import torch
from safetensors.torch import save_file

from poa_hf.runs.checksums import first_difference, write_checksums
from poa_hf.runs.soundness import checkpoint_damage, model_damage

from .folders import PARTS, checkpoint, flip_bit


@pytest.mark.parametrize("checksums", [True, False])
def test_a_checkpoint_as_it_was_written_is_sound(tmp_path, checksums):
    folder = checkpoint(tmp_path, 5, checksums=checksums)
    assert checkpoint_damage(folder) is checkpoint_damage(folder, thorough=False) is model_damage(folder) is None
    (folder / "notes.txt").write_text("mine")
    assert checkpoint_damage(folder) is None


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("position", [0, 0.2, 0.7, 0.999])
def test_a_flipped_bit_anywhere_is_found(tmp_path, part, position):
    folder = checkpoint(tmp_path, 5, checksums=True)
    flip_bit(folder / part, position)
    assert checkpoint_damage(folder) == f"{part} has another content than was written, by its checksum"


@pytest.mark.parametrize("part", ["model.safetensors", "optimizer.bin"])
def test_large_files_are_read_only_if_asked_for(tmp_path, part, monkeypatch):
    monkeypatch.setattr("poa_hf.runs.checksums.SMALL", 1000)
    folder = checkpoint(tmp_path, 5, checksums=True)
    flip_bit(folder / part)
    assert checkpoint_damage(folder, thorough=False) is None
    assert checkpoint_damage(folder).startswith(f"{part} has another content")
    with open(folder / part, "ab") as file:
        file.write(b"x")
    size = (folder / part).stat().st_size
    assert checkpoint_damage(folder, thorough=False) == f"{part} has {size} bytes instead of {size - 1}"


@pytest.mark.parametrize("part", PARTS)
def test_a_cut_or_empty_file_is_found_with_and_without_checksums(tmp_path, part):
    for name, checksums in (("with", True), ("without", False)):
        folder = checkpoint(tmp_path / name, 5, checksums=checksums)
        content = (folder / part).read_bytes()
        for length in (0, len(content) // 2):
            (folder / part).write_bytes(content[:length])
            assert part in checkpoint_damage(folder)


def test_a_flipped_bit_in_the_optimizer_is_found_without_checksums_too(tmp_path):
    folder = checkpoint(tmp_path, 5)
    flip_bit(folder / "optimizer.bin", 0.5)
    assert checkpoint_damage(folder).startswith("optimizer.bin is damaged: ")


@pytest.mark.parametrize(
    "part, content, said",
    [
        ("counts.json", "[]", "it holds list, not an object"),
        ("counts.json", '{"global_batch_size": 4}', "its nonfinite_steps is not a whole number"),
        ("counts.json", '{"global_batch_size": true, "nonfinite_steps": 0, "in_a_row": 0}', "its global_batch_size is"),
        ("trainer_state.json", "x", "line 1, column 1 is not JSON"),
        ("trainer_state.json", '{"global_step": "5"}', "its global_step is 5"),
        ("trainer_state.json", '{"global_step": 5, "log_history": [5]}', "log_history cannot be those of a run"),
        ("trainer_state.json", '{"global_step": 5, "log_history": [], "later": 1}', "later"),
        ("trainer_state.json", '{"global_step": 4, "log_history": []}', "trainer_state.json is that of step 4"),
        ("data_state_0.json", "[" * 100_000, "nested too deeply"),
        ("data_state_0.json", "\udcff", "byte 0 is not UTF-8"),
        ("config.json", "null", "it holds NoneType, not an object"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../../secret"}}', "lacks model.safetensors"),
        ("model.safetensors.index.json", '{"weight_map": {"a": ["b"]}}', "lacks model.safetensors"),
    ],
)
def test_content_of_another_kind_is_named_with_its_file(tmp_path, part, content, said):
    folder = checkpoint(tmp_path, 5)
    (folder / part).write_text(content, errors="surrogateescape")
    damage = checkpoint_damage(folder)
    assert said in damage and part.removesuffix(".index.json") in damage


class Malicious:
    def __reduce__(self):
        return os.system, ("touch pickle-ran",)


@pytest.mark.parametrize("value", [Malicious(), 3, {}, {"state": 3, "param_groups": []}, {"state": {0: 1}}])
def test_an_optimizer_state_of_other_objects_is_refused_and_runs_nothing(tmp_path, value, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = checkpoint(tmp_path, 5)
    torch.save(value, folder / "optimizer.bin")
    write_checksums(folder)
    assert checkpoint_damage(folder).startswith("optimizer.bin is damaged: ")
    assert not (tmp_path / "pickle-ran").exists()


@pytest.mark.parametrize(
    "checksums, said",
    [
        ("{", "checksums.json cannot be read: line 1, column 2 is not JSON"),
        ("{}", "checksums.json holds no checksums"),
        ('{"files": {}}', "checksums.json does not list config.json"),
        ('{"files": {"/etc/passwd": {}}}', "'/etc/passwd', which is no file of the folder"),
        ('{"files": {"a/../../b": {}}}', "which is no file of the folder"),
        ('{"files": {"a": {"size": 1.5, "sha256": "x"}}}', "has no size and SHA-256 for 'a'"),
        ('{"files": {"a": {"size": 1, "sha256": "%s"}}}' % ("0" * 63), "has no size and SHA-256 for 'a'"),
    ],
)
def test_damaged_checksums_are_named(tmp_path, checksums, said):
    folder = checkpoint(tmp_path, 5)
    (folder / "checksums.json").write_text(checksums)
    assert said in checkpoint_damage(folder)


def test_checksums_are_those_of_sha256sum(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_bytes(b"abc")
    write_checksums(tmp_path)
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, example B.1
    assert json.loads((tmp_path / "checksums.json").read_text()) == {"files": {"sub/file": {"size": 3, "sha256": abc}}}
    assert first_difference(tmp_path, thorough=True) is None


def test_a_named_pipe_is_no_part(tmp_path):
    folder = checkpoint(tmp_path, 5)
    (folder / "counts.json").unlink()
    os.mkfifo(folder / "counts.json")
    assert "it is not a file" in checkpoint_damage(folder)


def test_weights_that_do_not_fit_their_header_are_damaged(tmp_path):
    folder = checkpoint(tmp_path, 5)
    save_file({"weight": torch.zeros(5)}, folder / "model.safetensors")
    assert model_damage(folder) is None
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    assert model_damage(folder).startswith("model.safetensors is damaged: ")
