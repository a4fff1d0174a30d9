import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from poa_hf.data.decoding import UndecodableImage
from poa_hf.evaluation.dense.pixel_values import compact, find_values_column, read_depth, read_mask

VALUES = np.array([[0, 1, 2, 7], [11, 255, 3, 0]], dtype=np.uint8)
LIMIT = 10_000


def png(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def palette() -> Image.Image:
    image = Image.fromarray(VALUES, "P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tolist())
    return image


STORED = {
    "grey": lambda: png(Image.fromarray(VALUES)),
    "palette": lambda: png(palette()),
    "palette with transparency": lambda: png(palette(), transparency=0),
    "16 bits": lambda: png(Image.fromarray(VALUES.astype(np.uint16))),
    "grey in colour": lambda: png(Image.fromarray(np.repeat(VALUES[..., None], 3, axis=2))),
    "grey with opacity": lambda: png(Image.merge("LA", [Image.fromarray(VALUES), Image.new("L", (4, 2), 255)])),
    "undecoded": lambda: {"bytes": png(Image.fromarray(VALUES)), "path": None},
    "Pillow": lambda: Image.fromarray(VALUES),
    "array": lambda: VALUES,
    "one channel first": lambda: VALUES[None].astype(np.int64),
    "one channel last": lambda: VALUES[..., None].astype(np.float32),
    "nested lists": lambda: VALUES.tolist(),
    "tensor": lambda: torch.from_numpy(VALUES),
}


@pytest.mark.parametrize("kind", STORED)
def test_masks_are_the_numbers_that_are_stored(kind):
    found = read_mask(STORED[kind](), LIMIT)
    assert found.dtype == np.int64 and (found == VALUES).all()


def test_a_turned_file_is_read_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    found = read_mask(png(Image.fromarray(VALUES), exif=exif), LIMIT)
    assert (found == np.rot90(VALUES, -1)).all()


def test_a_mask_of_two_values():
    assert read_mask(png(Image.fromarray(VALUES > 2)), LIMIT).tolist() == (VALUES > 2).astype(int).tolist()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda: png(palette().convert("RGB")), "holds colours"),
        (lambda: VALUES + np.float32(0.5), "not whole"),
        (lambda: np.full((2, 2), np.nan), "not whole"),
    ],
)
def test_values_that_are_no_classes(value, reason):
    with pytest.raises(ValueError, match=reason):
        read_mask(value(), LIMIT)


@pytest.mark.parametrize(
    "value", [None, b"nothing", 7, "missing.png", np.zeros((2, 3, 4, 5)), [[1], [2, 3]], np.zeros((200, 200), np.uint8)]
)
def test_values_that_cannot_be_read(value):
    with pytest.raises(UndecodableImage):
        read_mask(value, LIMIT)


def test_depths_in_any_unit_without_what_was_not_measured():
    metres = np.array([[1.5, 0, 3.25], [np.nan, -1, np.inf]], dtype=np.float32)
    wanted = np.array([[1.5, np.nan, 3.25], [np.nan] * 3], dtype=np.float32)
    np.testing.assert_array_equal(read_depth(metres, LIMIT, 1), wanted)
    millimetres = np.nan_to_num(1000 * metres, nan=0, posinf=0).clip(0).astype(np.uint16)
    np.testing.assert_array_equal(read_depth(png(Image.fromarray(millimetres)), LIMIT, 1000), wanted)
    tiff = io.BytesIO()
    Image.fromarray(metres).save(tiff, "TIFF")
    np.testing.assert_array_equal(read_depth(tiff.getvalue(), LIMIT, 1), wanted)


def test_columns_are_found_by_their_names():
    row = {"image": VALUES, "mask": VALUES, "depth": VALUES, "label": 3}
    assert find_values_column([row], "mask") == "mask" and find_values_column([row], "depth") == "depth"
    assert find_values_column([row], "mask", "depth") == "depth"
    assert find_values_column([(VALUES, VALUES)], "mask") is None
    assert find_values_column([{"jpg": b"", "mask.png": b""}], "mask") == "mask.png"
    as_image = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    empty = {"image": [None], "label": [None]}
    assert find_values_column(datasets.Dataset.from_dict(empty, features=as_image), "mask") == "label"


@pytest.mark.parametrize(
    ("dataset", "name", "message"),
    [
        ([{"image": 0, "label": 1}], None, r"no column of masks \(its columns: image, label\): pass --mask_column"),
        ([{"image": 0, "mask": 1, "seg": 1}], None, r"several columns of masks \(mask, seg; all columns: image, mask"),
        ([{"image": 0, "mask": 1}], "msk", "no column 'msk' for --mask_column: .*mask"),
        ([VALUES], None, "no masks"),
    ],
)
def test_columns_that_are_missing_or_not_clear(dataset, name, message):
    with pytest.raises(ValueError, match=message):
        find_values_column(dataset, "mask", name)


@pytest.mark.parametrize(
    ("values", "kind"),
    [([0, 255], "uint8"), ([0, 256], "uint16"), ([-1, 3], "int32"), ([0, 65536], "int32"), ([0, 2**40], "int64")],
)
def test_classes_wait_in_the_smallest_type_that_holds_them(values, kind):
    array = np.array([values])
    assert compact(array).dtype == kind and (compact(array) == array).all()
    assert compact(array.astype(np.float32)).dtype == np.float32
