"""Arrays become images by declared rules, whose values NumPy computes here in another way."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from poa_hf.data import CropArguments, PretrainingLoader, UndecodableImage, open_image
from poa_hf.data.arrays import image_from_array

from .test_decoding import as_file

RNG = np.random.default_rng(0)
EIGHT = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)
EIGHT.flat[:2] = 0, 255


def pixels(value) -> np.ndarray:
    return np.asarray(open_image(value))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("overshoot", [0.0, 0.004, 0.02, 0.2])
def test_fractions_with_overshoot(dtype, overshoot):
    values = (EIGHT / 255 * (1 + 2 * overshoot) - overshoot).astype(dtype)
    expected = np.rint(255 * np.minimum(np.maximum(values.astype(np.float64), 0), 1))
    assert np.array_equal(pixels(values), expected)
    # a factor of 255 is far above any tolerance: the case that once turned black
    assert pixels(values).mean() > 60


def test_resampled_fractions_keep_their_brightness():
    """Pillow's own overshoot, in mode F, of a hard edge."""
    edge = Image.fromarray(np.repeat([[0.0, 1.0]], 8, axis=1).astype(np.float32).repeat(16, axis=0))
    resampled = np.asarray(edge.resize((40, 40), Image.Resampling.LANCZOS))
    assert resampled.max() > 1.02 and resampled.min() < -0.02
    assert np.array_equal(pixels(resampled)[..., 0], np.rint(np.clip(resampled.astype(np.float64), 0, 1) * 255))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32, np.int64, np.uint32, np.uint64])
def test_eight_bits_in_wider_types(dtype):
    values = EIGHT.astype(dtype)
    assert np.array_equal(pixels(values), EIGHT)
    if np.dtype(dtype).kind != "u":
        values[0, 0] = -12
        values[0, 1] = 270
        assert pixels(values)[0, :2].tolist() == [[0] * 3, [255] * 3]
        assert np.array_equal(pixels(values)[1:], EIGHT[1:])


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64, np.uint32, np.float32, np.float64])
def test_sixteen_bits(dtype):
    values = RNG.integers(0, 65536, (9, 7))
    values[0, :2] = 65535, 0
    expected = np.floor(values / 257 + 0.5)
    assert np.array_equal(pixels(values.astype(dtype))[..., 1], expected)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64])
def test_thirty_two_bits(dtype):
    white = 2**31 - 1 if dtype == np.int32 else 2**32 - 1
    values = (np.arange(256) * white // 255).astype(dtype).reshape(16, 16)
    assert np.array_equal(pixels(values)[..., 0].ravel(), np.arange(256))


@pytest.mark.parametrize("endian", ["<", ">"])
def test_either_byte_order(endian):
    values = np.arange(0, 65536, 257).reshape(16, 16)
    assert np.array_equal(pixels(values.astype(f"{endian}u2"))[..., 0], values // 257)
    assert np.array_equal(pixels((values / 65535).astype(f"{endian}f4"))[..., 0], values // 257)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I", "F"])
@pytest.mark.parametrize("format", ["TIFF", None])
def test_wide_modes_of_pillow(mode, format):
    values = np.arange(0, 65536, 257).reshape(16, 16)
    if mode.startswith("I;16"):
        data = values.astype(">u2" if mode == "I;16B" else "<u2").tobytes()
        image = Image.frombytes(mode, (16, 16), data)
    else:
        image = Image.fromarray(values.astype(np.int32 if mode == "I" else np.float32))
        assert image.mode == mode
    value = image if format is None else as_file(image, format)
    assert np.array_equal(pixels(value)[..., 0], values // 257)


@pytest.mark.parametrize("high", [1.0, 1.02, 255.0])
def test_float_tiff(high):
    values = EIGHT[..., 0].astype(np.float32) * np.float32(high / 255)
    expected = np.rint(np.clip(values.astype(np.float64), 0, 1 if high < 2 else 255) * (255 if high < 2 else 1))
    assert np.array_equal(pixels(as_file(Image.fromarray(values), "TIFF"))[..., 0], expected)


def test_not_a_number_and_infinity_are_black():
    values = np.array([[np.nan, np.inf, -np.inf, 0.5, 1.0]])
    assert pixels(values)[0, :, 0].tolist() == [0, 0, 0, 128, 255]
    assert pixels(np.full((2, 2), np.nan)).max() == 0


@pytest.mark.parametrize(
    "values",
    [
        EIGHT / 127.5 - 1,  # -1..1
        (EIGHT - 128.0) / 58,  # standardised
        EIGHT.astype(np.int16) - 128,
        np.array([[0, 1_000_000]]),
        np.array([[0.0, 1e30]]),
        np.array([[0, 2**40]]),
        EIGHT.astype(complex),
        np.array([["a", "b"]]),
        np.array([[None, 3]], dtype=object),
        np.array([["2020-01-01"]], dtype="datetime64[D]"),
    ],
    ids=lambda values: f"{values.dtype}-{values.shape}",
)
def test_values_without_a_rule_are_refused(values):
    with pytest.raises(UndecodableImage, match="scale them to|is not an image"):
        open_image(values)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_first_and_last(channels):
    values = RNG.integers(0, 256, (11, 13, channels), dtype=np.uint8)
    modes = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
    flat = values[..., 0] if channels == 1 else values
    expected = pixels(as_file(Image.frombytes(modes[channels], (13, 11), flat.tobytes())))
    assert np.array_equal(pixels(values), expected)
    assert np.array_equal(pixels(values.transpose(2, 0, 1)), expected)


def test_channels_are_last_where_both_could_be():
    values = RNG.integers(0, 256, (3, 20, 3), dtype=np.uint8)
    assert np.array_equal(pixels(values), values)


def test_tensors_of_any_kind():
    values = torch.from_numpy(EIGHT)
    assert np.array_equal(pixels(values), EIGHT)
    assert np.array_equal(pixels((values.double() / 255).requires_grad_()), EIGHT)
    coarse = (values // 32 * 32).float()
    assert np.array_equal(pixels(coarse.bfloat16()), coarse.numpy())


def test_an_image_of_an_array_has_the_arrays_mode():
    assert image_from_array(EIGHT).mode == "RGB" and image_from_array(EIGHT[..., :2]).mode == "LA"


ARGS = CropArguments(global_crop_size=8, local_crop_size=4, num_local_crops=1, global_crop_scale=[1.0, 1.0])


def first_crops(dataset, **options) -> dict[str, np.ndarray]:
    loader = PretrainingLoader(dataset, ARGS, batch_size=4, mask_grid=(2, 2), **options)
    batch = next(iter(loader))
    assert batch["skipped"] == 0
    return dict(zip(batch["image_ids"], batch["global_crops"][:4].numpy(), strict=True))


@pytest.mark.parametrize("form", [None, "numpy", "torch", "stream", "transform"])
@pytest.mark.parametrize("kind", ["Array3D", "Array3D float", "Array2D", "lists", "Image"])
def test_columns_of_arrays_are_images(kind, form):
    arrays = [RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(4)]
    if kind == "Array2D":
        arrays = [array[..., 0] for array in arrays]
    feature = {
        "Array3D": datasets.Array3D((8, 8, 3), "uint8"),
        "Array3D float": datasets.Array3D((8, 8, 3), "float32"),
        "Array2D": datasets.Array2D((8, 8), "uint8"),
        "lists": datasets.List(datasets.List(datasets.List(datasets.Value("int64")))),
        "Image": datasets.Image(),
    }[kind]
    name = "image" if kind == "lists" else "pixels"
    values = [array / 255 if "float" in kind else array.tolist() if kind == "lists" else array for array in arrays]
    features = datasets.Features({name: feature, "label": datasets.Value("int64")})
    dataset = datasets.Dataset.from_dict({name: values, "label": range(4)}, features=features)
    if form == "stream":
        dataset = dataset.to_iterable_dataset()
    elif form == "transform":
        dataset.set_transform(lambda rows: {"img": [np.asarray(value) for value in rows[name]]})
    elif form is not None:
        dataset = dataset.with_format(form)
    for image_id, crop in first_crops(dataset).items():
        array = arrays[int(image_id.split(":")[-1])]
        array = array if array.ndim == 3 else array[..., None].repeat(3, axis=-1)
        assert np.abs(crop.transpose(1, 2, 0).astype(int) - array).max() <= 1
