"""A stream goes on behind an image that `datasets` cannot decode, and decodes none that no function sees."""

import pickle

import datasets
import numpy as np
import pytest
from PIL import Image

from poa_hf.data import CropArguments, PretrainingLoader, UndecodableImage, open_image
from poa_hf.data.rows import StreamedImages
from poa_hf.evaluation.labelled import LabelledImages

from .images import FEATURES, png

VALUES = [png(0), png(1), b"broken", png(3)]
MADE = datasets.Features(jpg=datasets.Image(), more=datasets.Value("int64"))


def stream_with_broken_image() -> datasets.IterableDataset:
    rows = {"image": [{"bytes": each, "path": None} for each in VALUES], "label": range(len(VALUES))}
    return datasets.Dataset.from_dict(rows, features=FEATURES).to_iterable_dataset()


async def later(row):
    return {"more": row["image"].width}


def rows_of(stream) -> list:
    images = StreamedImages(stream)
    return [row for shard in range(images.num_shards) for row in images.rows(images.open_shard(shard))]


# Steps of which no function can see an image.
UNSEEN = {
    "rename": lambda s: s.rename_column("label", "y"),
    "rename of the images": lambda s: s.rename_column("image", "jpg"),
    "remove": lambda s: s.remove_columns("label"),
    "add": lambda s: s.add_column("more", [1, 2, 3, 4]),
    "filter by another column": lambda s: s.filter(lambda label: label < 9, input_columns=["label"]),
    "map of another column": lambda s: s.map(lambda label: {"more": label}, input_columns="label"),
    "batches of another column": lambda s: s.filter(
        lambda labels: [True] * len(labels), batched=True, input_columns=["label"]
    ),
    "decoded in threads": lambda s: s.decode(num_threads=2).rename_column("label", "y"),
    "in a format": lambda s: s.with_format("numpy").rename_column("label", "y"),
    "tables": lambda s: s.with_format("arrow").filter(lambda table: True),
    "concatenated": lambda s: datasets.concatenate_datasets([s.rename_column("label", "y").take(2), s.skip(2)]),
}
# Steps with functions that may see images.
SEEN = {
    "filter": lambda s: s.filter(lambda row: row["label"] < 9),
    "filter of images": lambda s: s.filter(lambda image: image.width > 1, input_columns=["image"]),
    "map": lambda s: s.map(lambda row: {"label": row["label"] + 1}),
    "map of images": lambda s: s.map(lambda row: {"image": row["image"].copy()}),
    "map to other images": lambda s: s.map(
        lambda row: {"jpg": row["image"], "more": 1}, features=MADE, remove_columns=["image", "label"]
    ),
    "several": lambda s: (
        s.map(lambda row: {"width": row["image"].width})
        .filter(lambda row: row["width"] > 1)
        .rename_column("width", "w")
    ),
    "map of nothing": lambda s: s.map(lambda row: row, remove_columns=["label"]),
    "functions that wait": lambda s: s.map(later),
    "decoded in threads": lambda s: s.decode(num_threads=2).filter(lambda row: row["image"].width > 1),
    "tensors": lambda s: s.with_format("torch").map(lambda row: {"image": row["image"].float().round().byte()}),
    "arrays": lambda s: s.with_format("numpy").filter(lambda row: row["image"].ndim == 3),
}


@pytest.mark.parametrize("kind", UNSEEN)
def test_images_that_no_function_sees_stay_as_they_are(monkeypatch, kind):
    def refuse(*_, **__):
        raise AssertionError("an image is decoded")

    monkeypatch.setattr(datasets.Image, "decode_example", refuse)
    assert [row["bytes"] for row in rows_of(UNSEEN[kind](stream_with_broken_image()))] == VALUES


@pytest.mark.parametrize("kind", SEEN)
def test_a_row_with_a_broken_image_passes_by_functions(kind):
    rows = rows_of(SEEN[kind](stream_with_broken_image()))
    assert isinstance(rows[2], UndecodableImage) and "text, in no known image format" in str(rows[2])
    for number in (0, 1, 3):
        assert np.array_equal(open_image(rows[number]), open_image(VALUES[number]))


def test_such_streams_go_to_other_processes():
    source = pickle.loads(pickle.dumps(StreamedImages(stream_with_broken_image().filter(bool))))
    assert [isinstance(row, UndecodableImage) for row in source.rows(source.open_shard(0))] == [
        False,
        False,
        True,
        False,
    ]


def test_training_replaces_it_and_evaluation_keeps_its_label():
    stream = stream_with_broken_image().filter(lambda row: row["label"] > 0).rename_column("label", "y")
    arguments = CropArguments(global_crop_size=16, local_crop_size=16, num_local_crops=1)
    loader = PretrainingLoader(stream, arguments, batch_size=3, mask_grid=(2, 2))
    batch = next(iter(loader))
    assert batch["skipped"] == 1 and set(batch["image_ids"]) == {"0:0", "0:2"}
    rows = [row for _, rows in LabelledImages(stream, label_column="y").batches(4) for row in rows]
    assert [row.label for row in rows] == [1, 2, 3] and isinstance(rows[1].image, UndecodableImage)


def test_a_row_of_which_another_image_is_broken_is_not_used_without_its_function():
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image())
    values = {name: [{"bytes": each, "path": None}] for name, each in (("image", png(0)), ("mask", b"broken"))}
    stream = datasets.Dataset.from_dict(values, features=features).to_iterable_dataset()
    (row,) = rows_of(stream.map(lambda row: {"image": Image.new("L", row["mask"].size)}))
    assert isinstance(row, UndecodableImage)


def test_a_function_of_batches_says_what_it_needs():
    stream = stream_with_broken_image().map(lambda rows: rows, batched=True, batch_size=2)
    with pytest.raises(ValueError, match=r"\(its bytes are text.*after row 2: use .decode\(False\)"):
        rows_of(stream)
