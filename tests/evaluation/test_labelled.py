import datasets
import numpy as np
import pytest
import torch

from poa_hf.data.textures import TextureDataset
from poa_hf.evaluation.labelled import LabelledImages, UnlabelledImage, find_label_column

from .images import CLASSES, parquet_folder, table


def rows(images: LabelledImages, size: int = 7, shares: int = 1) -> list:
    """What all shares together give, in order: [(key, [(name, label), ...]), ...]."""
    parts = [images.batches(size, share, shares) for share in range(shares)]
    return sorted((key, [(row.name, row.label) for row in batch]) for part in parts for key, batch in part)


@pytest.fixture
def folder(tmp_path):
    return parquet_folder(tmp_path / "images", table(60), table(20, seed=6))


@pytest.mark.parametrize("limit", [None, 25])
@pytest.mark.parametrize("streaming", [True, False])
def test_batches_do_not_depend_on_how_many_share_them(folder, streaming, limit):
    dataset = datasets.load_dataset(str(folder), split="train", streaming=streaming)
    images = LabelledImages(dataset, limit=limit)
    assert len(images) == (limit or 60)
    whole = rows(images)
    labels = [label for _, batch in whole for _, label in batch]
    assert len(labels) == (limit or 60)
    if limit is None:
        assert labels == table(60)["label"]
    for shares in (2, 3, 5):  # also more than there are files
        assert rows(images, shares=shares) == whole


def test_a_part_of_a_stream_is_spread_over_its_rows(tmp_path):
    labels = sorted(i % 10 for i in range(80))
    folder = parquet_folder(tmp_path / "sorted", table(80, labels=labels), files=1)
    stream = datasets.load_dataset(str(folder), split="train", streaming=True)
    assert {label for _, batch in rows(LabelledImages(stream, limit=20)) for _, label in batch} == set(range(10))
    names = [name for _, batch in rows(LabelledImages(stream, limit=75)) for name, _ in batch]
    assert len(set(names)) == 75
    names = [name for _, batch in rows(LabelledImages(stream, limit=500)) for name, _ in batch]
    assert len(names) == len(set(names)) == 80
    unread = LabelledImages(stream, limit=500)
    assert unread.known_length is None and len(unread) == unread.known_length == 80


def test_a_part_of_a_table_is_a_random_sample_by_the_seed():
    dataset = table(40)
    first, again, other = (rows(LabelledImages(dataset, limit=10, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_items_of_other_kinds():
    textures = LabelledImages(TextureDataset(length=9))
    assert len(textures) == 9 and textures.image_column == "image"
    pairs = [(np.zeros((4, 4, 3), np.uint8), torch.tensor(i % 2)) for i in range(5)]
    assert [label for _, batch in rows(LabelledImages(pairs)) for _, label in batch] == [0, 1, 0, 1, 0]
    names = LabelledImages(table(4, label=datasets.Value("string"), labels=["dog", "cat", "cat", "emu"]))
    assert [label for _, batch in rows(names) for _, label in batch] == ["dog", "cat", "cat", "emu"]


def test_the_label_column_is_found_by_its_type_or_its_name():
    features = datasets.Features({"image": datasets.Image(), "kind": CLASSES, "label": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict({"image": [], "kind": [], "label": []}, features=features)
    assert find_label_column(dataset) == "kind"
    assert find_label_column(dataset, "label") == "label"
    assert find_label_column(dataset.remove_columns("kind")) == "label"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.remove_columns("label"), "no label column .its columns: image.*--label_column"),
        (lambda t: t.add_column("other", t["label"], feature=CLASSES), "several label columns .label, other"),
        (lambda t: t.cast_column("label", datasets.Value("float32")), "'label' is of type float32"),
        (lambda t: t.map(lambda r: {"label": [1, 2]}, features=_with(datasets.List(datasets.Value("int64")))), "List"),
        (lambda t: t.select([]), "train split is empty"),
        (
            lambda t: t.with_transform(lambda batch: {**batch, "label": [0.5] * len(batch["label"])}),
            "0.5 of type float",
        ),
        (lambda t: [({"no": "image"},)], "no labels"),
        (lambda t: 3, "type int is not a dataset"),
    ],
)
def test_labels_that_are_none_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LabelledImages(change(table(4)))


def _with(feature):
    return datasets.Features({"image": datasets.Image(), "label": feature})


@pytest.mark.parametrize("value", [-1, None])
def test_unlabelled_splits_are_refused(value):
    dataset = table(3, label=datasets.Value("int64"), labels=[value] * 3)
    with pytest.raises(UnlabelledImage, match=rf"Row 0 of the test split has no label \({value}\)"):
        LabelledImages(dataset, name="test")
    late = LabelledImages(table(3, label=datasets.Value("int64"), labels=[0, 1, value]))
    with pytest.raises(UnlabelledImage, match="Row 2"):
        rows(late)
