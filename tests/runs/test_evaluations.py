import dataclasses
import json
import multiprocessing
from pathlib import Path

import numpy as np
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


def test_intervals_come_back_and_say_nothing_of_what_was_measured(tmp_path):
    with_interval = record(interval=[0.25, 0.75])
    assert with_interval.key == record().key
    path = save_evaluations(tmp_path / "file.json", [with_interval])
    assert load_evaluations(path) == [with_interval]
    save_evaluations(path, [record()])
    assert load_evaluations(path) == [record()] and "interval" not in path.read_text()


def test_numbers_of_numpy_are_kept(tmp_path):
    whole, share = np.int64, np.float32(0.25)  # which is the same in any precision
    measured = record(
        value=share, test_images=whole(20), train_images=np.int32(50), step=whole(7), holdout=share,
        holdout_seed=np.uint8(3), settings={"k": whole(20), "shares": [share]}, interval=[np.float64(0), np.float32(1)],
        details={"curve": {"x": [whole(1), 2]}, "rate": np.float16(0.5)},
    )  # fmt: skip
    wanted = record(
        value=0.25, holdout=0.25, holdout_seed=3, settings={"k": 20, "shares": [0.25]}, interval=[0, 1],
        details={"curve": {"x": [1, 2]}, "rate": 0.5},
    )  # fmt: skip
    assert measured.key == wanted.key
    assert load_evaluations(save_evaluations(tmp_path / "file.json", [measured])) == [wanted]


NO_INTERVALS = [[0.5], [0.5, 0.4], ["a", "b"], [None, 0.5], [0.1, True], 0.5, [float("nan")] * 2, [0, float("inf")]]


@pytest.mark.parametrize("ends", NO_INTERVALS)
def test_a_number_is_kept_without_what_is_no_interval(tmp_path, ends):
    path = tmp_path / "file.json"
    path.write_text(json.dumps([dataclasses.asdict(record()) | {"interval": ends}]))
    assert load_evaluations(path) == [record()]
    path = save_evaluations(tmp_path / "other.json", [record(interval=ends)])
    assert load_evaluations(path) == [record()] and "interval" not in path.read_text()


def test_checkpoints_share_the_file_of_their_run(tmp_path):
    (tmp_path / "checkpoint-30").mkdir()
    assert save_evaluations(tmp_path / "checkpoint-30", [record()]) == tmp_path / "evaluations.json"


@pytest.mark.parametrize(
    "content",
    ["{", "3", "null", '[{"size": "1x1"}]', '[{"other": 1}]', "[3]", "\udcff", "[" * 100_000, '[{"\\ud800": 1}]', ""],
)
def test_other_files_are_left_alone(tmp_path, content):
    path = tmp_path / "evaluations.json"
    path.write_text(content, errors="surrogateescape")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="cannot be read as evaluations"):
        save_evaluations(path, [record()])
    assert path.read_bytes() == before


def test_values_that_are_nested_too_deeply_are_refused(tmp_path):
    (tmp_path / "evaluations.json").write_text(json.dumps([vars(record()) | {"details": {"a": 0}}]))
    text = (tmp_path / "evaluations.json").read_text().replace('"a": 0', f'"a": {"[" * 5000}{"]" * 5000}')
    (tmp_path / "evaluations.json").write_text(text)
    with pytest.raises(ValueError, match="cannot be read as evaluations"):
        load_evaluations(tmp_path)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="cannot be written"):
        save_evaluations(tmp_path / "no" / "file.json", [record()])


@pytest.mark.parametrize(
    "field, value",
    [
        *(("value", value) for value in ("0.5", None, True, [0.5], 10**400)),
        *(("size", 384), ("dataset", None), ("date", 20261126), ("test_images", "20"), ("test_images", 2.5)),
        *(("settings", []), ("settings", {"k": "20"}), ("settings", {"label_share": None}), ("details", 3)),
        *(("step", "7"), ("train_images", {}), ("dataset_config", 1)),
    ],
)
def test_a_record_with_a_value_of_another_kind_is_named(tmp_path, field, value):
    save_evaluations(tmp_path, [record(), record(size="448x12")])
    path = tmp_path / "evaluations.json"
    content = json.loads(path.read_text())
    content[1][field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="evaluations.json cannot be read .*record 2 is not .* its (setting )?.*"):
        load_evaluations(tmp_path)


def save_one_by_one(path: Path, name: str) -> None:
    for step in range(20):
        save_evaluations(path, [record(model=name, step=step)])


def test_evaluations_that_end_at_the_same_moment_lose_no_record(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=save_one_by_one, args=(tmp_path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert len(load_evaluations(tmp_path)) == 60
    assert [found.name for found in tmp_path.iterdir()] == ["evaluations.json"]
