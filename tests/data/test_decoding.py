"""Every kind of value becomes an upright RGB image, and everything else one kind of exception."""

import io
from collections import UserDict

import numpy as np
import pytest
from PIL import Image

from poa_hf.data import UndecodableImage, open_image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def as_file(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


RGB = Image.fromarray(PIXELS)
DATA = as_file(RGB)


@pytest.mark.parametrize(
    "form", ["bytes", "dict", "mapping", "path", "url", "dict path", "image", "array", "channels first"]
)
def test_forms_of_the_same_image(tmp_path, form):
    path = tmp_path / "image.png"
    path.write_bytes(DATA)
    value = {
        "bytes": DATA,
        "dict": {"bytes": DATA, "path": "somewhere/else.png"},
        "mapping": UserDict(bytes=DATA, path=None),
        "path": path,
        "url": f"file://{path}",
        "dict path": {"bytes": None, "path": str(path)},
        "image": RGB,
        "array": PIXELS,
        "channels first": PIXELS.transpose(2, 0, 1),
    }[form]
    image = open_image(value)
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), PIXELS)


def test_tensor():
    import torch

    assert np.array_equal(np.asarray(open_image(torch.from_numpy(PIXELS))), PIXELS)
    as_float = torch.from_numpy(PIXELS).permute(2, 0, 1) / 255
    assert np.array_equal(np.asarray(open_image(as_float)), PIXELS)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (1, 4, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float32])
def test_grey_arrays(shape, dtype):
    array = np.zeros(shape, dtype)
    assert open_image(array).size == (5, 4) and open_image(array).mode == "RGB"


def test_grey_palette_and_bilevel():
    grey = RGB.convert("L")
    assert np.array_equal(np.asarray(open_image(as_file(grey)))[..., 1], np.asarray(grey))
    palette = RGB.quantize(16)
    assert np.array_equal(np.asarray(open_image(as_file(palette))), np.asarray(palette.convert("RGB")))
    assert open_image(as_file(grey.convert("1"))).mode == "RGB"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparent_pixels_become_white(mode):
    colours = Image.fromarray(np.array([[[10, 20, 30], [200, 100, 50]]], dtype=np.uint8))
    if mode == "P":
        image = colours.quantize(2)
        data = as_file(image, transparency=image.getpixel((0, 0)))
    elif mode == "RGB":
        data = as_file(colours, transparency=(10, 20, 30))
    elif mode == "L":
        data = as_file(colours.convert("L"), transparency=colours.convert("L").getpixel((0, 0)))
    else:
        image = colours.convert(mode)
        image.putalpha(Image.fromarray(np.array([[0, 255]], dtype=np.uint8)))
        data = as_file(image)
    result = np.asarray(open_image(data))
    assert result[0, 0].tolist() == [255, 255, 255]
    grey = mode in ("LA", "L")
    opaque = np.asarray(colours.convert("L").convert("RGB") if grey else colours)[0, 1]
    assert result[0, 1].tolist() == opaque.tolist()


def test_half_transparent_pixels_are_mixed_with_white():
    image = Image.new("RGBA", (1, 1), (100, 0, 200, 128))
    assert np.abs(np.asarray(open_image(as_file(image)))[0, 0] - np.array([177, 127, 227])).max() <= 1


def test_sixteen_bits_are_scaled():
    values = np.array([[0, 257, 128 * 257, 255 * 257, 129]], dtype=np.uint16)
    expected = [0, 1, 128, 255, 1]
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        file = as_file(image, "TIFF" if image.mode == "I" else "PNG")
        assert np.asarray(open_image(file))[0, :, 0].tolist() == expected
        assert np.asarray(open_image(image))[0, :, 0].tolist() == expected
    assert np.asarray(open_image(values))[0, :, 0].tolist() == expected
    fractions = Image.fromarray(np.array([[0, 0.5, 1]], np.float32))
    assert np.asarray(open_image(fractions))[0, :, 0].tolist() == [0, 128, 255]


def test_the_transparent_value_of_sixteen_bits_becomes_white():
    values = np.array([[0, 1000, 30000, 65535]], dtype=np.uint16)
    plain, marked = (as_file(Image.fromarray(values), **options) for options in ({}, {"transparency": 1000}))
    expected = np.asarray(open_image(plain)).copy()
    expected[0, 1] = 255
    assert np.array_equal(open_image(marked), expected)


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_opacity_that_is_multiplied_in(mode):
    plain = Image.fromarray(np.array([[[90, 90, 90, 255], [8, 8, 8, 0]]], dtype=np.uint8)).convert(mode.upper())
    assert np.asarray(open_image(plain.convert(mode))).tolist() == [[[90] * 3, [255] * 3]]


def test_cmyk_jpeg():
    image = Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK")
    assert np.abs(np.asarray(open_image(as_file(image, "JPEG", quality=95)))[8, 8] - np.array([200, 30, 60])).max() < 6


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {1: 0, 3: 2, 6: 3, 8: 1}[orientation]
    for format, options in (("PNG", {}), ("JPEG", {"quality": 100, "subsampling": 0})):
        plain = np.asarray(Image.open(io.BytesIO(as_file(RGB, format, **options))))
        result = np.asarray(open_image(as_file(RGB, format, exif=exif, **options)))
        assert np.array_equal(result, np.rot90(plain, turns))


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"garbage",
        DATA[:60],
        as_file(RGB, "JPEG")[:-100],
        b"GIF89a",
        {"bytes": None, "path": None},
        {"bytes": None, "path": "no/such/file.png"},
        "no/such/file.png",
        "nosuchprotocol://file.png",
        7,
        {"label": 1},
        np.zeros((2, 2, 2, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((5, 5, 7), np.uint8),
    ],
    ids=lambda value: type(value).__name__,
)
def test_everything_else_is_undecodable_for_a_short_reason(value):
    with pytest.raises(UndecodableImage, match="."):
        open_image(value)
    try:
        open_image(value)
    except UndecodableImage as error:
        assert "\n" not in str(error) and "0x" not in str(error)


@pytest.mark.filterwarnings("ignore")
def test_random_damage_never_escapes_as_another_exception():
    rng = np.random.default_rng(0)
    for data in [as_file(RGB, format) for format in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")]:
        for _ in range(60):
            damaged = bytearray(data)
            for place in rng.integers(0, len(damaged), 6):
                damaged[place] = rng.integers(256)
            try:
                open_image(bytes(damaged[: rng.integers(1, len(damaged) + 1)]))
            except UndecodableImage:
                pass
