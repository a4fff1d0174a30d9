import hashlib
import io
import tarfile
from collections import Counter, UserDict
from types import MappingProxyType

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from poa_hf.data.sources import open_dataset
from poa_hf.data.textures import TextureDataset
from poa_hf.evaluation.data.coinciding import identify
from poa_hf.evaluation.labelled import LabelledImages, UnlabelledImage, find_label_column

from ..data.streams import IN_ORDER, ROWS, SEPARABLE, generate, memory_stream, numbered, value
from .image_folders import CLASSES, parquet_folder, table


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
    unread = LabelledImages(stream)
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


@pytest.mark.parametrize("form", [UserDict, MappingProxyType])
def test_rows_and_images_that_are_mappings(form):
    stored = table(4).cast_column("image", datasets.Image(decode=False))
    given = [
        form({"image": form(row["image"] | {"path": f"{at}.png"}), "cls": at % 3}) for at, row in enumerate(stored)
    ]
    images = LabelledImages(given)
    assert (images.image_column, images.label_column) == ("image", "cls")
    [(_, batch)] = images.batches(7, 0, 1)
    assert [row.label for row in batch] == [0, 1, 2, 0]
    black = Image.new("RGB", (1, 1))
    for row, kept in zip(batch, stored, strict=True):
        known = identify(row.image, row.name, black)
        assert known.hash == hashlib.blake2b(kept["image"]["bytes"], digest_size=16).digest()
        assert known.name == row.image["path"]


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


LABELLED = {kind: build for kind, build in (SEPARABLE | IN_ORDER).items() if kind not in ("renamed and cast", "map")}


def values(images: LabelledImages, shares: int = 1, size: int = 4) -> list[int]:
    """The numbers of the images that all shares read, in the order of the batches' keys."""
    batches = {key: rows for share in range(shares) for key, rows in images.batches(size, share, shares)}
    return [value(row.image) for key in sorted(batches) for row in batches[key]]


@pytest.mark.parametrize("kind", LABELLED)
def test_the_rows_of_a_stream_are_those_that_iterating_gives(kind):
    dataset = LABELLED[kind](memory_stream())
    expected = [(value(row["image"]), int(row["label"])) for row in dataset]
    images = LabelledImages(dataset)
    assert len(images) == len(expected)
    for shares in range(1, 5):
        assert values(images, shares) == [number for number, _ in expected]
    assert [row.label for _, batch in images.batches(4) for row in batch] == [label for _, label in expected]


@pytest.mark.parametrize(
    "build",
    [lambda s: s.take(200), lambda s: s.map(lambda r: r, batched=True), lambda s: s.repeat(2), lambda s: s.shard(4, 0)],
)
def test_a_limited_number_of_rows_is_a_sample_of_the_whole_stream(build):
    """The first rows of a stream that is sorted by class would be of one class."""
    dataset = build(memory_stream())
    expected = [row["label"] for row in dataset]
    first, other = (LabelledImages(dataset, limit=8, seed=seed) for seed in (0, 1))
    found = values(first)
    assert len(first) == len(found) == 8 and found == values(first, 3) != values(other)
    assert max(found) > max(expected) // 2 and sorted(expected.index(number) for number in found)
    assert values(LabelledImages(dataset, limit=500)) == expected


def test_streams_without_an_end_are_read_up_to_a_limit_or_refused():
    endless = memory_stream().repeat(None)
    with pytest.raises(ValueError, match="train split repeats without end: leave out .repeat.., or set the number"):
        LabelledImages(endless)
    found = values(LabelledImages(endless, limit=5), 2)
    assert len(found) == 5
    assert values(LabelledImages(endless.take(60))) == [*range(ROWS), *range(12)]

    def forever():
        while True:
            yield from generate(count=20)

    found = values(LabelledImages(datasets.IterableDataset.from_generator(forever), limit=5))
    assert len(found) == 5


@pytest.mark.parametrize(
    "build",
    [
        lambda d: d.select(range(9, 30)),
        lambda d: d.filter(lambda row: row["label"] % 3 == 0),
        lambda d: d.shuffle(seed=1),
        lambda d: d.train_test_split(test_size=9, seed=2)["test"],
        lambda d: datasets.concatenate_datasets([d.select(range(3)), d]),
        lambda d: d.with_format("numpy").shard(3, 1),
    ],
)
def test_the_rows_of_a_table_are_those_that_indexing_gives(build):
    dataset = build(numbered())
    expected = [int(row["label"]) for row in dataset]
    for shares in (1, 3):
        assert values(LabelledImages(dataset), shares) == expected


@pytest.mark.parametrize("files", [1, 2, 5])
@pytest.mark.parametrize("suffix", ["parquet", "tar"])
def test_a_sample_of_sorted_rows_has_every_class_also_of_few_files(files, suffix, tmp_path):
    rows_in_all = table(100, label=datasets.Value("int64"), labels=[i // 10 for i in range(100)])
    for number in range(files):
        part = rows_in_all.shard(files, number, contiguous=True).cast_column("image", datasets.Image(decode=False))
        path = tmp_path / f"train-{number:05d}-of-{files:05d}.{suffix}"
        if suffix == "parquet":
            part.to_parquet(path)
            continue
        with tarfile.open(path, "w") as archive:
            for index, row in enumerate(part):
                for field, content in (("png", row["image"]["bytes"]), ("cls", str(row["label"]).encode())):
                    entry = tarfile.TarInfo(f"{number}-{index}.{field}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    images = LabelledImages(open_dataset(str(tmp_path)), limit=20)
    counts = Counter(label for _, batch in rows(images) for _, label in batch)
    assert set(counts.values()) == {2} and len(counts) == 10
