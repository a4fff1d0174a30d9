"""Images with other backgrounds are those that loops over pixels make."""

import datasets
import numpy as np
import pytest
from PIL import Image

from poa_hf.evaluation.alterations.backgrounds import (
    AT_LEAST,
    POOL,
    background_of,
    collect_backgrounds,
    on_background,
    only_foreground,
    without_foreground,
)
from poa_hf.evaluation.data.masked import MaskedImages, MaskedRow, foreground_of
from poa_hf.evaluation.labelled import LabelledImages

from ..image_folders import disc, masked_table, parquet_folder, table

RNG = np.random.default_rng(0)
MASK = disc(size=40) > 0
FORMS = {1: "L", 3: "RGB", 5: None}


def image_of(channels, height=40, width=40):
    pixels = RNG.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return pixels if FORMS[channels] is None else Image.fromarray(pixels if channels == 3 else pixels[..., 0])


def array(image):
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else pixels[..., None]


@pytest.mark.parametrize("channels", FORMS)
def test_black_in_place_of_foreground_or_background(channels):
    image = image_of(channels)
    kept, removed = only_foreground(image, MASK), without_foreground(image, MASK)
    for result in (kept, removed):
        assert isinstance(result, np.ndarray) == isinstance(image, np.ndarray)
        assert array(result).dtype == np.uint8 and array(result).shape == array(image).shape
    for row in range(40):
        for column in range(40):
            original = array(image)[row, column]
            assert (array(kept)[row, column] == (original if MASK[row, column] else 0)).all()
            assert (array(removed)[row, column] == (0 if MASK[row, column] else original)).all()


def naive_background(pixels, top, bottom, left, right):
    """The box is covered by copies of the largest strip beside it, pixel by pixel."""
    height, width = pixels.shape[:2]
    sizes = {"above": top * width, "below": (height - bottom) * width}
    sizes |= {"left": left * height, "right": (width - right) * height}
    largest = max(sizes, key=sizes.get)
    covered = pixels.copy()
    for row in range(top, bottom):
        for column in range(left, right):
            down, across = row - top, column - left  # the place in the box
            if largest == "above":
                covered[row, column] = pixels[down % top, column]
            elif largest == "below":
                covered[row, column] = pixels[bottom + down % (height - bottom), column]
            elif largest == "left":
                covered[row, column] = pixels[row, across % left]
            else:
                covered[row, column] = pixels[row, right + across % (width - right)]
    return covered


@pytest.mark.parametrize("channels", FORMS)
@pytest.mark.parametrize("box", [(20, 35, 5, 30), (2, 15, 5, 30), (5, 35, 25, 38), (1, 38, 3, 12), (0, 40, 10, 40)])
def test_the_background_covers_the_box_of_the_foreground(channels, box):
    top, bottom, left, right = box
    mask = np.zeros((40, 40), bool)
    mask[top, left] = mask[bottom - 1, right - 1] = mask[(top + bottom) // 2, left:right] = True
    image = image_of(channels)
    assert np.array_equal(array(background_of(image, mask)), naive_background(array(image), *box))


def test_a_foreground_without_a_background():
    assert background_of(image_of(3), np.ones((40, 40), bool)) is None
    corners = np.zeros((40, 40), bool)
    corners[0, 0] = corners[-1, -1] = True
    assert background_of(image_of(3), corners) is None
    image = image_of(3)
    assert np.array_equal(background_of(image, np.zeros((40, 40), bool)), image)


@pytest.mark.parametrize("channels", FORMS)
def test_a_foreground_on_another_background(channels):
    """One of the same size is taken as it is; others are scaled to cover the image, as Pillow does."""
    image, other = image_of(channels), image_of(channels)
    result = array(on_background(image, MASK, other))
    assert np.array_equal(result, np.where(MASK[..., None], array(image), array(other)))
    wide = image_of(channels, 80, 120)
    result = array(on_background(image, MASK, wide))
    for channel in range(channels):
        part = Image.fromarray(np.ascontiguousarray(array(wide)[..., channel]))
        middle = part.resize((40, 40), Image.Resampling.BICUBIC, box=(20, 0, 100, 80))
        expected = np.where(MASK, array(image)[..., channel], np.asarray(middle))
        assert np.abs(result[..., channel].astype(int) - expected).max() <= 1


DECODING = {"num_channels": 3}


@pytest.mark.parametrize("streaming", [True, False])
def test_backgrounds_are_the_same_streamed_or_not_and_without_foreground(tmp_path, streaming):
    source = masked_table(40)
    folder = parquet_folder(tmp_path / "images", source)
    dataset = datasets.load_dataset(str(folder), split="train", streaming=streaming)
    found, again = (collect_backgrounds(MaskedImages(dataset), DECODING) for _ in range(2))
    assert sorted(found.by_label) == sorted(set(source["label"]))
    assert sum(map(len, found.by_label.values())) == 40  # fewer than are kept
    expected = {row["image"].tobytes(): row for row in source}
    for label, backgrounds in found.by_label.items():
        for background, same in zip(backgrounds, again.by_label[label], strict=True):
            assert background.image_hash == same.image_hash
            (row,) = [
                row
                for row in expected.values()
                if np.array_equal(background.image, background_of(row["image"], np.asarray(row["mask"]) > 0))
            ]
            assert row["label"] == label


def test_a_large_split_lends_some_backgrounds_of_each_class():
    images = MaskedImages(masked_table(300, classes=3))
    found = collect_backgrounds(images, DECODING)
    sizes = {label: len(backgrounds) for label, backgrounds in found.by_label.items()}
    assert max(sizes.values()) == POOL // 3 > AT_LEAST and min(sizes.values()) > POOL // 4


def test_large_backgrounds_are_kept_small():
    large = [Image.new("RGB", (900, 600), colour) for colour in ("red", "blue")]
    mask = Image.new("L", (900, 600))
    mask.paste(1, (300, 200, 400, 300))
    rows = [{"image": image, "label": label, "mask": mask} for label, image in enumerate(large)]
    found = collect_backgrounds(MaskedImages(rows), DECODING)
    assert [kept.image.size for (kept,) in found.by_label.values()] == [(384, 256)] * 2


def test_an_image_borrows_from_another_one():
    found = collect_backgrounds(MaskedImages(masked_table(24, classes=4)), DECODING)
    rng = np.random.default_rng(0)
    for label, backgrounds in found.by_label.items():
        own, *others = backgrounds
        same = [found.draw(label, own.image_hash, True, rng).tobytes() for _ in range(100)]
        assert set(same) == {other.image.tobytes() for other in others}
        assert not {found.draw(label, own.image_hash, False, rng).tobytes() for _ in range(100)} & set(same)


def test_nothing_can_be_borrowed():
    images = [row["image"] for row in table(2)]
    mask = Image.fromarray(disc())
    rows = [{"image": image, "label": label, "mask": mask} for label, image in enumerate(images)]
    found = collect_backgrounds(MaskedImages(rows), DECODING)
    own = found.by_label[0][0].image_hash
    rng = np.random.default_rng(0)
    assert found.draw(0, own, True, rng) is None and found.draw(0, own, False, rng) is not None
    with pytest.raises(ValueError, match="^All images of the test split are of one class, so no background of another"):
        collect_backgrounds(MaskedImages([row | {"label": 0} for row in rows]), DECODING)
    with pytest.raises(ValueError, match="^The task backgrounds needs a mask of the foreground beside each test image"):
        collect_backgrounds(LabelledImages(table(4)), DECODING)


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(disc()),
        Image.fromarray(disc() > 0),
        Image.fromarray(disc()).convert("P"),
        Image.fromarray(np.stack([disc()] + 2 * [np.zeros_like(disc())], axis=-1)),
        Image.fromarray(np.stack(3 * [disc()] + [np.full_like(disc(), 255)], axis=-1)),
        disc().astype(np.int64),
        (disc() > 0).tolist(),
        disc().astype(np.float32)[None],
    ],
    ids=["grey", "1 bit", "palette", "RGB", "RGBA", "int64", "list", "float (1, H, W)"],
)
def test_any_number_but_zero_is_foreground(mask):
    row = MaskedRow("3", None, 1, mask)
    assert np.array_equal(foreground_of(row, image_of(3)), disc() > 0)


@pytest.mark.parametrize(
    "mask, message",
    [
        (None, "has no mask: give every image a mask"),
        (Image.new("L", (20, 40)), "has an image of 40 x 40 pixels, but a mask of 20 x 40: give both in one size"),
        (b"no mask", "has a mask that cannot be read"),
        ([[1, 2], [3]], "has a mask that cannot be read"),
    ],
)
def test_masks_that_are_not_valid(mask, message):
    rows = [{"image": image_of(3), "label": label, "mask": mask if label == 1 else disc()} for label in (0, 1, 0)]
    with pytest.raises(ValueError, match=f"^Row 1 of the test split {message}"):
        collect_backgrounds(MaskedImages(rows), DECODING)


def test_columns():
    dataset = masked_table(3)
    images = MaskedImages(dataset.rename_columns({"mask": "annotation"}))
    assert (images.image_column, images.label_column, images.mask_column) == ("image", "label", "annotation")
    assert MaskedImages(dataset.rename_column("mask", "outline"), mask_column="outline").image_column == "image"
    assert [label for part in images.labels() for label in part] == dataset["label"]
    with pytest.raises(ValueError, match="no column of masks .its columns: image, label.: pass --mask_column"):
        MaskedImages(dataset.remove_columns("mask"))
    with pytest.raises(ValueError, match="mask_column"):
        MaskedImages(dataset, mask_column="masc")
    with pytest.raises(ValueError, match="^The dataset's items are tuples, which have no masks"):
        MaskedImages([(image_of(3), 0)])
