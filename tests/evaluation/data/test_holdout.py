import datasets
import numpy as np
import pytest

from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.labelled import LabelledImages
from poa_hf.evaluation.splits import EvaluationData, open_splits
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import TaskOptions

from ..image_folders import parquet_folder, table

TABLE = table(90).sort("label")  # sorted by class, the worst case for slices


def rows(split: LabelledImages, share: int = 0, shares: int = 1) -> list[tuple[bytes, int]]:
    found = sorted(
        (key, [(row.image["bytes"], row.label) for row in batch])
        for part in range(shares)
        for key, batch in split.batches(4, part, shares)
    )
    return [row for _, batch in found for row in batch]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    return str(parquet_folder(tmp_path_factory.mktemp("holdout") / "sorted", TABLE))


@pytest.mark.parametrize("kind", ["stream", "indexed"])
def test_a_held_out_part_has_every_class_and_shares_no_row(kind, folder, tmp_path):
    name = folder
    if kind == "indexed":
        name = str(tmp_path / "saved")
        datasets.DatasetDict(train=TABLE).save_to_disk(name)
    data = open_splits(name, holdout=0.2, seed=3)
    assert data.train.is_stream == (kind == "stream")
    train, test = rows(data.train), rows(data.test)
    whole = [(row["image"]["bytes"], row["label"]) for row in TABLE.cast_column("image", datasets.Image(decode=False))]
    assert sorted(train + test) == sorted(whole) and not {*train} & {*test}
    assert (len(data.train), len(data.test)) == (len(train), len(test))
    counts = np.bincount(TABLE["label"], minlength=10)
    assert np.bincount([label for _, label in test], minlength=10).tolist() == [max(1, round(0.2 * n)) for n in counts]
    again, other = open_splits(name, holdout=0.2, seed=3), open_splits(name, holdout=0.2, seed=4)
    assert rows(again.test) == test and {*rows(other.test)} != {*test}
    assert all(rows(data.test, shares=shares) == test for shares in (2, 3, 7))
    limited = open_splits(name, holdout=0.2, seed=3, max_train_images=30, max_test_images=9)
    assert {*rows(limited.train)} < {*train} and {*rows(limited.test)} < {*test}
    assert (len(rows(limited.train)), len(rows(limited.test))) == (len(limited.train), len(limited.test)) == (30, 9)
    assert len({label for _, label in rows(limited.train)}) >= 8


def test_the_only_image_of_a_class_is_not_held_out(tmp_path, caplog):
    integer = datasets.Value("int64")
    folder = parquet_folder(tmp_path / "few", table(9, label=integer, labels=[0, 1, 1, 2, 2, 2, 3, 3, 3]))
    data = open_splits(str(folder), holdout=0.01)
    assert sorted(label for _, label in rows(data.test)) == [1, 2, 3]
    assert "1 of 4 classes of the train split have one image only" in caplog.text
    data = open_splits(str(folder), holdout=0.99)
    assert sorted(label for _, label in rows(data.train)) == [0, 1, 2, 3]


def test_hold_outs_that_cannot_be_made_are_errors(folder, tmp_path):
    for share in (0, 1, -0.5, 20, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="above 0 and below 1, such as 0.2"):
            open_splits(folder, holdout=share)
    with pytest.raises(ValueError, match="leave out --test_split"):
        open_splits(folder, test_split="test", holdout=0.2)
    with pytest.raises(ValueError, match="seed is -1"):
        open_splits(folder, holdout=0.2, seed=-1)
    integer = datasets.Value("int64")
    alone = parquet_folder(tmp_path / "alone", table(3, label=integer, labels=[0, 1, 2]))
    with pytest.raises(ValueError, match="one image only, so no image can be held out"):
        open_splits(str(alone), holdout=0.2)
    unlabelled = parquet_folder(tmp_path / "unlabelled", table(6, label=integer, labels=[0, 0, 1, 1, -1, 1]))
    with pytest.raises(ValueError, match="has no label"):
        open_splits(str(unlabelled), holdout=0.2)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "train"),
        ("train", "train[:]"),
        ("train[:]", "train"),
        ("train[:80%]", "train[70%:]"),
        ("train[:60]", "train[59:]"),
        ("train[-40:]", "train[:55]"),
        ("train", "test+train"),
    ],
)
def test_images_are_not_for_training_and_testing_both(train, test, tmp_path):
    folder = tmp_path / "pictures"
    for row in TABLE.select(range(0, 90, 1)):
        path = folder / str(row["label"])
        path.mkdir(parents=True, exist_ok=True)
        row["image"].save(path / f"{len(list(path.iterdir()))}.png")
    with pytest.raises(ValueError, match="both for training and for testing.*--test_split .*--holdout 0.2"):
        open_splits(str(folder), train_split=train, test_split=test)


def test_one_dataset_object_does_not_serve_as_both_splits():
    split, half = LabelledImages(TABLE), LabelledImages(TABLE, limit=60)
    for test in (split, LabelledImages(TABLE), half):
        with pytest.raises(ValueError, match="given both for training and for testing"):
            EvaluationData(test, split)
    stream = TABLE.to_iterable_dataset(3)
    with pytest.raises(ValueError, match="given both for training and for testing"):
        EvaluationData(LabelledImages(stream), LabelledImages(stream))


def test_the_test_split_is_never_the_train_split(tmp_path):
    folder = parquet_folder(tmp_path / "images", table(12), table(6, seed=6))
    with pytest.raises(ValueError, match="neither a test nor a validation split"):
        open_splits(str(folder), train_split="test")
    assert open_splits(str(folder), train_split=None, test_split="train").train is None  # for clustering


def test_a_saved_dataset_without_a_name_is_not_its_own_test_split(tmp_path):
    TABLE.save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="--holdout 0.2"):
        open_splits(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match="has no split 'test'; it is the saved split 'train'"):
        open_splits(str(tmp_path / "saved"), test_split="test")
    data = open_splits(str(tmp_path / "saved"), holdout=0.2)
    assert len(data.train) + len(data.test) == len(TABLE)


@pytest.fixture
def evaluate(tiny_model):
    """A function from data to records: of k-NN, then of clustering."""
    subject = Subject("run", tiny_model.teacher, evaluation_processor(32))
    return lambda data: evaluate_sizes(subject, data, ["16x1"], ["knn", "clustering"], TaskOptions(k=(3,)))


def test_images_of_both_splits_are_counted_and_named(evaluate, caplog):
    train = table(40)
    test = datasets.concatenate_datasets([table(10, seed=6), train.select([7, 20])])
    knn, *clustering = evaluate(EvaluationData(LabelledImages(test, name="test"), LabelledImages(train)))
    assert knn.coinciding_images == 2 and clustering[0].coinciding_images is None
    assert "2 of 12 test images are also train images" in caplog.text
    assert "test image 10 is train image 7" in caplog.text
    caplog.clear()
    # of arrays, whose rows hold no bytes, the pixels are compared
    arrays = [(np.asarray(row["image"]), row["label"]) for row in train]
    knn, *_ = evaluate(EvaluationData(LabelledImages(arrays[:5], name="test"), LabelledImages(arrays)))
    assert knn.coinciding_images == 5
    knn, *_ = evaluate(EvaluationData(LabelledImages(table(10, seed=6), name="test"), LabelledImages(train)))
    assert knn.coinciding_images == 0


def test_a_hold_out_is_recorded(evaluate, folder):
    knn, *_ = evaluate(open_splits(folder, holdout=0.2, seed=3))
    assert (knn.holdout, knn.holdout_seed, knn.test_split, knn.train_split) == (0.2, 3, "train", "train")
    assert knn.train_images + knn.test_images == 90 and knn.coinciding_images == 0
