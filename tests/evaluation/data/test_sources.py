import pytest
import yaml

from poa_hf.evaluation.data.sources import Source, splits_overlap, training_source
from poa_hf.runs.layout import RunFolder


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("train", "test", False),
        ("train", "train", True),
        ("train", "train[:]", True),
        ("train[:80%]", "train[80%:]", False),
        ("train[:80%]", "train[79%:]", True),
        ("train[:80]", "train[80:]", False),
        ("train[:81]", "train[80:]", True),
        ("train[-20:]", "train[:80]", False),  # of 100 rows
        ("train[-20:]", "train[:81]", True),
        ("train[:50%]", "train[60:]", False),
        ("train+test", "test[:1]", True),
        ("train[:10]+test[:10]", "train[10:]+test[10:]", False),
        ("train", "training", False),
        ("train[", "test", False),  # no split at all; opening it says so
    ],
)
def test_whether_splits_have_rows_in_common(first, second, expected):
    lengths = {"train": 100, "test": 50}
    rows = [{(name, row) for name, row in _rows(split, lengths)} for split in (first, second)]
    assert bool(rows[0] & rows[1]) is expected  # as slices of Python lists
    assert splits_overlap(first, second, lengths) is splits_overlap(second, first, lengths) is expected


def test_all_splits_together_have_rows_in_common_with_each():
    assert splits_overlap("all", "train") and splits_overlap("train[:5]", "all")


def _rows(split, lengths):
    for part in split.split("+"):
        name, _, bounds = part.rstrip("]").partition("[")
        numbers = range(lengths.get(name, 0))
        start, _, stop = bounds.partition(":")
        places = [
            None if not b else int(b[:-1]) * len(numbers) // 100 if b.endswith("%") else int(b) for b in (start, stop)
        ]
        yield from ((name, row) for row in numbers[slice(*places)])


def test_a_folder_is_the_same_by_any_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    (tmp_path / "others").mkdir()
    test = Source("photos", None, "train[:10%]")
    for same in ("photos", "./photos", "photos/", "others/../photos", str(tmp_path / "photos"), "link", "./link/"):
        assert Source(same, None, "train").overlaps(test) and test.overlaps(Source(same, None, "train"))
    for other in (
        Source("others", None, "train"), Source("photos", "small", "train"), Source("photos", None, "test"),
        Source("me/photos", None, "train"),
    ):  # fmt: skip
        assert not other.overlaps(test)
    hub = Source("me/photos", "small", "train")
    assert hub.overlaps(Source("me/photos", "small", "train[5:]"))
    assert not Source("textures", None, "train").overlaps(Source("textures", None, "train"))  # of other seeds


def test_the_images_of_a_run_are_those_of_its_recipe(tmp_path):
    run = RunFolder(tmp_path)
    assert training_source(run) is None
    recipe = {"dataset_name": "me/photos", "dataset_config_name": "small", "dataset_split": "train[:90%]"}
    run.recipe.write_text(yaml.safe_dump(recipe))
    assert training_source(run) == Source("me/photos", "small", "train[:90%]")
    for content in ("- a list", "dataset_name: [1, 2]", "dataset_name: '", "steps: 3"):
        run.recipe.write_text(content)
        assert training_source(run) is None
