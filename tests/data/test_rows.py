"""Rows are read undecoded, whatever the dataset."""

from collections import UserDict
from types import MappingProxyType

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from poa_hf.data import CropArguments, PretrainingLoader, UndecodableImage, open_image
from poa_hf.data.rows import IndexedImages, StreamedImages, undecoded
from poa_hf.evaluation.labelled import LabelledImages

from .images import png, stored_images


def test_images_of_datasets_are_bytes():
    stored = stored_images([png(0), b"broken"])
    images = IndexedImages(stored)
    assert len(images) == 2 and images[0]["bytes"] == png(0)
    assert images.row(1).name == "1" and images.row(1).image["bytes"] == b"broken"
    streamed = StreamedImages(stored.to_iterable_dataset(num_shards=2))
    rows = [row for shard in range(2) for row in streamed.rows(streamed.open_shard(shard))]
    assert [row["bytes"] for row in rows] == [png(0), b"broken"]
    # `datasets` decodes streams from the Hub in threads
    threaded = StreamedImages(stored.to_iterable_dataset().decode(num_threads=2))
    assert [row["bytes"] for row in threaded.rows(threaded.open_shard(0))] == [png(0), b"broken"]


def test_a_transform_of_the_user_is_kept():
    flipped = stored_images([png(3)]).with_transform(lambda rows: {"image": ["seen"] * len(rows["image"])})
    assert undecoded(flipped, ["image"]) is flipped
    assert IndexedImages(flipped)[0] == "seen"


def test_an_image_that_the_dataset_cannot_decode_is_a_bad_row():
    class Decoding:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            if index:
                raise OSError("image file is truncated")
            return Image.new("RGB", (8, 8))

    images = IndexedImages(Decoding())
    assert images.row(0).image.size == (8, 8)
    with pytest.raises(UndecodableImage, match="image file is truncated"):
        open_image(images.row(1).image)


@pytest.mark.parametrize("shape", [(6, 5, 3), (3, 6, 5), (6, 5)])
def test_nested_lists_are_images(shape):
    arrays = list(np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8))
    expected = [open_image(array).tobytes() for array in arrays]
    nested = [array.tolist() for array in arrays]
    for items in (nested, [(each, 1) for each in nested], [[each, 1] for each in nested]):
        images = IndexedImages(items)
        assert [open_image(images.row(number).image).tobytes() for number in range(2)] == expected


def test_items_that_are_mappings_have_columns():
    items = [UserDict(image=png(number), label=number) for number in range(2)]
    images = IndexedImages(items)
    assert images.column == "image" and [images[number] for number in range(2)] == [png(0), png(1)]


def test_images_that_are_mappings_have_bytes_and_paths(tmp_path):
    (tmp_path / "7.png").write_bytes(png(7))
    values = [{"bytes": None, "path": str(tmp_path / "7.png")}, {"bytes": png(1), "path": "once.png"}]
    for form in (dict, UserDict, MappingProxyType):
        rows = [IndexedImages([{"image": form(value)} for value in values]).row(number) for number in range(2)]
        assert [row.name for row in rows] == [str(tmp_path / "7.png"), "1"]
        assert [open_image(row.image).getpixel((0, 0)) for row in rows] == [(7, 7, 7), (1, 1, 1)]


def test_splits_in_a_mapping_are_refused_with_their_names():
    with pytest.raises(
        ValueError, match=r"A UserDict cannot be read: give one of its splits \(a, b\), as dataset\['a'\]"
    ):
        PretrainingLoader(UserDict(a=[png(0)], b=[png(1)]), CropArguments(), batch_size=1, mask_grid=(2, 2))


@pytest.mark.parametrize(
    "make, remedy",
    [
        (lambda rows: pd.DataFrame(rows), "A DataFrame of pandas is no dataset: give datasets.Dataset.from_pandas"),
        (lambda rows: pa.table(rows), r"A Table of pyarrow is no dataset: give datasets.Dataset\(dataset\)"),
    ],
)
def test_tables_of_other_libraries_are_refused_with_what_to_give(make, remedy):
    table = make({"image": [png(0), png(1)]})
    with pytest.raises(ValueError, match=remedy):
        PretrainingLoader(table, CropArguments(), batch_size=1, mask_grid=(2, 2))
    with pytest.raises(ValueError, match=remedy):
        LabelledImages(table)
