import json
from collections import Counter

import datasets
import pytest
from PIL import Image

from poa_hf.evaluation.transfer import (
    KeptResults,
    TransferRow,
    load_splits,
    measure,
    split_classes,
    transfer_table,
    write_rows,
)


class Trainings:
    """Pretends to train: the accuracy of a rate, plus a little for the seed; some rates or seeds fail."""

    def __init__(self, accuracy, failing=()):
        self.accuracy, self.failing, self.done = accuracy, failing, []

    def __call__(self, rate, seed, is_choice):
        self.done.append((rate, seed, is_choice))
        if rate in self.failing or (seed in self.failing and not is_choice):
            raise RuntimeError(f"rate {rate}\nseed {seed}")
        return self.accuracy[rate] + 0.01 * seed, 2.0


def test_the_rate_is_chosen_on_the_held_out_part_and_every_seed_is_tested(tmp_path):
    train = Trainings({0.1: 0.5, 0.2: 0.7, 0.3: 0.6})
    found = measure(KeptResults(tmp_path), "cell", {"steps": 3}, train, [0.1, 0.2, 0.3], [4, 5])
    assert found == {"rate": 0.2, "accuracies": pytest.approx([0.74, 0.75]), "seconds": 2.0, "error": None}
    assert train.done == [(0.1, 4, True), (0.2, 4, True), (0.3, 4, True), (0.2, 4, False), (0.2, 5, False)]


def test_one_rate_needs_no_choice_and_none_is_a_method_of_its_own(tmp_path):
    for rates, rate in [([0.1], 0.1), (None, None)]:
        train = Trainings({0.1: 0.5, None: 0.6})
        measure(KeptResults(tmp_path / str(rate)), "cell", {}, train, rates, [0])
        assert train.done == [(rate, 0, False)]


def test_results_are_kept_until_their_settings_change(tmp_path):
    first, second, third = (Trainings({0.1: 0.5, 0.2: 0.4}) for _ in range(3))
    results = [
        measure(KeptResults(tmp_path), "cell", {"steps": 3}, train, [0.1, 0.2], [0]) for train in (first, second)
    ]
    assert results[0] == results[1] and len(first.done) == 3 and second.done == []
    measure(KeptResults(tmp_path), "cell", {"steps": 4}, third, [0.1, 0.2], [0])
    assert len(third.done) == 3


def test_a_failed_training_loses_nothing_else_and_is_tried_again(tmp_path, capsys):
    results = KeptResults(tmp_path)
    found = measure(results, "cell", {}, Trainings({0.1: 0.9, 0.2: 0.4}, failing=(0.1, 6)), [0.1, 0.2], [5, 6])
    assert found["rate"] == 0.2 and found["accuracies"] == [pytest.approx(0.45)]
    assert found["error"] == "rate 0.2 seed 6" and results.failed == 2
    assert "cell-rate-0.1-seed-5-held-out failed: rate 0.1 seed 5" in capsys.readouterr().err
    again = Trainings({0.1: 0.1, 0.2: 0.4})
    found = measure(KeptResults(tmp_path), "cell", {}, again, [0.1, 0.2], [5, 6])
    assert again.done == [(0.1, 5, True), (0.2, 6, False)] and found["error"] is None

    found = measure(KeptResults(tmp_path / "b"), "cell", {}, Trainings({}, failing=(0.1, 0.2)), [0.1, 0.2], [0])
    assert found["accuracies"] == [] and found["rate"] is None and found["error"] == "rate 0.1 seed 0"


def test_the_table_has_means_spreads_and_errors(tmp_path):
    rows = [
        TransferRow("some/flowers", "64x4", 214144, "extracted", "finetune", 4e-3, [0.5, 0.52], 12.4),
        TransferRow("cars", "64x4", 214144, "random", "linear", None, [], None, "no | data"),
    ]
    assert transfer_table(rows).splitlines()[2:] == [
        "| flowers | 64x4 | 214,144 | extracted | finetune | 0.004 | 51.0 ± 1.4 (2 seeds) | 12 |",
        "| cars | 64x4 | 214,144 | random | linear |  | failed: no \\| data |  |",
    ]
    write_rows(tmp_path / "rows.json", rows)
    assert json.loads((tmp_path / "rows.json").read_text())[0]["accuracies"] == [0.5, 0.52]


def write(folder, **splits):
    for split, labels in splits.items():
        rows = [{"image": Image.new("RGB", (8, 8), (i, 0, 0)), "kind": label} for i, label in enumerate(labels)]
        kinds = datasets.ClassLabel(names=["a", "b", "c"])
        data = datasets.Dataset.from_list(rows, features=datasets.Features({"image": datasets.Image(), "kind": kinds}))
        data.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def test_splits_of_a_dataset(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    only = write(tmp_path / "one", train=[0] * 10 + [1] * 20 + [2] * 5)
    train, test = load_splits(only)
    assert Counter(test["kind"]) == {0: 2, 1: 4, 2: 1} and len(train) == 28
    colours = [{image.getpixel((0, 0)) for image in part["image"]} for part in (train, test)]
    assert len(colours[0] | colours[1]) == 35  # no image in both
    both = write(tmp_path / "two", train=[0, 1, 2], validation=[0, 0])
    assert [len(part) for part in load_splits(both)] == [3, 2]
    assert [len(part) for part in load_splits(only, 6, 3)] == [6, 3]
    with pytest.raises(ValueError, match="no ClassLabel column, only x"):
        split_classes(datasets.Dataset.from_dict({"x": [1, 2]}), 0.5)
    with pytest.raises(ValueError, match="no train split, only validation"):
        (tmp_path / "three").mkdir()
        load_splits(write(tmp_path / "three", validation=[0, 1]))
