import dataclasses
import json

import pytest

from poa_hf.runs.evaluations import Evaluation, load_evaluations, save_evaluations


def record(**fields) -> Evaluation:
    usual = dict(
        model="run", size="384x12", task="knn", metric="knn_accuracy", value=0.5, dataset="images", test_split="test",
        test_images=20, date="2026-01-02", train_split="train", train_images=50, step=7, settings={"k": 20},
    )  # fmt: skip
    return Evaluation(**{**usual, **fields})


def test_records_come_back_and_later_ones_replace_those_of_the_same_thing(tmp_path):
    assert load_evaluations(tmp_path) == []
    path = save_evaluations(tmp_path, [record(), record(settings={"k": 10})])
    assert path == tmp_path / "evaluations.json"
    later = record(value=0.75, date="2026-01-03", details={"note": 1}, skipped_images=3)
    others = [record(step=8), record(size="448x12"), record(dataset="photos"), record(train_images=49)]
    save_evaluations(path, [later, *others])
    assert load_evaluations(path) == [later, record(settings={"k": 10}), *others] == load_evaluations(tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == ["evaluations.json"]
    assert len(path.read_text().splitlines()) == 8  # a line for each, between brackets
    assert json.loads(path.read_text())[0]["value"] == 0.75


def test_what_is_not_known_is_not_written(tmp_path):
    plain = record(step=None, train_split=None, train_images=None, settings={}, dataset_config=None)
    (written,) = json.loads(save_evaluations(tmp_path / "file.json", [plain]).read_text())
    assert not {"step", "train_split", "settings", "details", "dataset_config"} & set(written)
    assert load_evaluations(tmp_path / "file.json") == [plain]
    assert {field.name for field in dataclasses.fields(Evaluation)} >= set(written)


def test_checkpoints_share_the_file_of_their_run(tmp_path):
    (tmp_path / "checkpoint-30").mkdir()
    assert save_evaluations(tmp_path / "checkpoint-30", [record()]) == tmp_path / "evaluations.json"


@pytest.mark.parametrize("content", ["{", "3", '[{"size": "1x1"}]', '[{"other": 1}]', "\udcff"])
def test_other_files_are_left_alone(tmp_path, content):
    path = tmp_path / "evaluations.json"
    path.write_text(content, errors="surrogateescape")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="cannot be read as evaluations"):
        save_evaluations(path, [record()])
    assert path.read_bytes() == before


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="cannot be written"):
        save_evaluations(tmp_path / "no" / "file.json", [record()])
