"""Images of any number of channels: decoded, cropped, coloured, measured and prepared, against NumPy and Pillow."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from poa_hf.data import CropArguments, PretrainingLoader, UndecodableImage, open_image
from poa_hf.data.augmentation import augment, coloured
from poa_hf.data.crops import draw_augmentation, draw_boxes, multi_crop
from poa_hf.data.processor import decoding_of, evaluation_processor, prepared_images
from poa_hf.data.statistics import measure_statistics

from .test_decoding import DATA, RGB, as_file

RNG = np.random.default_rng(0)


def bands(channels, dtype=np.uint8, size=(20, 30)):
    high = 256 if dtype == np.uint8 else 65_536
    array = RNG.integers(0, high, (*size, channels))
    array.flat[0] = high - 1
    return (array / (high - 1)).astype(dtype) if np.dtype(dtype).kind == "f" else array.astype(dtype)


def in_8_bits(array):
    white = {"u1": 255, "u2": 65_535}.get(array.dtype.str[1:], 1)
    return np.rint(array.astype(np.float64) * 255 / white).astype(np.uint8)


@pytest.mark.parametrize("channels", [2, 4, 5, 12])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_arrays_keep_their_channels(channels, dtype):
    array = bands(channels, dtype)
    for value in (
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array.astype(np.float64 if dtype != np.uint8 else dtype)),
    ):
        if isinstance(value, torch.Tensor) and dtype == np.uint16:
            continue
        assert np.array_equal(open_image(value, num_channels=channels), in_8_bits(array))


def test_a_range_of_values():
    reflectance = RNG.integers(0, 12_000, (8, 9, 6)).astype(np.uint16)
    expected = np.rint(np.clip((reflectance - 1000.0) / 9000, 0, 1) * 255)
    assert np.array_equal(open_image(reflectance, num_channels=6, value_range=(1000, 10_000)), expected)
    grey = open_image(reflectance[..., 0], value_range=(1000, 10_000))
    assert np.array_equal(np.asarray(grey)[..., 1], expected[..., 0])
    file = as_file(Image.fromarray(reflectance[..., 0]), "TIFF")
    assert np.array_equal(np.asarray(open_image(file, num_channels=1, value_range=(1000, 10_000))), expected[..., 0])
    assert np.array_equal(open_image(bands(4), num_channels=4, value_range=(0, 10)).max(), 255)  # not of 8 bits


def test_grey_and_rgb_are_converted_into_one_another():
    grey = open_image(DATA, num_channels=1)
    assert grey.mode == "L" and np.array_equal(np.asarray(grey), np.asarray(RGB.convert("L")))
    file = as_file(RGB.convert("L"))
    assert np.array_equal(np.asarray(open_image(file, num_channels=1)), np.asarray(RGB.convert("L")))
    assert np.array_equal(np.asarray(open_image(file))[..., 2], np.asarray(RGB.convert("L")))


def test_four_channels_of_a_file_are_not_taken_for_opacity():
    array = bands(4)
    assert np.array_equal(open_image(as_file(Image.fromarray(array)), num_channels=4), array)
    assert np.array_equal(open_image(as_file(Image.fromarray(array[..., :2])), num_channels=2), array[..., :2])


@pytest.mark.parametrize(
    "value, channels, message",
    [
        (DATA, 5, r"it holds 3 channels \(RGB\), where the model takes 5"),
        (as_file(RGB.convert("L")), 4, r"it holds 1 channels \(L\), where the model takes 4"),
        (as_file(RGB.convert("CMYK"), "JPEG"), 4, r"it holds 4 channels \(CMYK\), where the model takes 4"),
        (bands(5), 12, r"an array of shape \(20, 30, 5\) is not an image of 12 channels"),
        (bands(5)[..., 0], 5, r"an array of shape \(20, 30\) is not an image of 5 channels"),
        (bands(5), 3, "not an image of 1 to 4 channels: give the model the num_channels of the images"),
        (bands(5), 1, "not an image of 1 to 4 channels"),
    ],
)
def test_other_channels_are_refused(value, channels, message):
    with pytest.raises(UndecodableImage, match=message):
        open_image(value, num_channels=channels)


def tiff(array, **options):
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


CONTIGUOUS = {"photometric": "minisblack", "planarconfig": "contig"}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(
    "options",
    [
        CONTIGUOUS,
        CONTIGUOUS | {"compression": "zlib", "predictor": True},
        CONTIGUOUS | {"tile": (16, 16)},
        {"bigtiff": True},
    ],
    ids=["contiguous", "deflate", "tiles", "big"],
)
def test_tiff_files(dtype, options):
    array = bands(5, dtype)
    data = tiff(array, **CONTIGUOUS | options)
    assert np.array_equal(open_image(data, num_channels=5), in_8_bits(array))
    separate = tiff(array.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate")
    assert np.array_equal(open_image({"bytes": separate, "path": None}, num_channels=5), in_8_bits(array))


def test_pages_of_a_tiff_file_are_channels():
    array = bands(6, np.uint16)
    data = tiff(array.transpose(2, 0, 1), photometric="minisblack")
    assert np.array_equal(open_image(data, num_channels=6), in_8_bits(array))
    assert np.array_equal(np.asarray(open_image(data, num_channels=1)), in_8_bits(array)[..., 0])  # the first page
    with pytest.raises(UndecodableImage, match="1 channel in each of 6 pages, where the model takes 4"):
        open_image(data, num_channels=4)


def test_tiff_files_that_pillow_cannot_read():
    array = bands(3, np.float32)
    assert np.array_equal(np.asarray(open_image(tiff(array, photometric="rgb"))), in_8_bits(array))
    with pytest.raises(UndecodableImage, match="5 channels, where the model takes 1 or 3"):
        open_image(tiff(bands(5), **CONTIGUOUS))
    with pytest.raises(UndecodableImage, match="more than 100 are not decoded"):
        open_image(tiff(bands(5), **CONTIGUOUS), 100, 5)
    with pytest.raises(UndecodableImage):
        open_image(tiff(bands(5), **CONTIGUOUS)[:900], num_channels=5)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_files_are_turned_as_pillow_turns_them(orientation):
    array = bands(5)
    data = tiff(array, **CONTIGUOUS, extratags=[(274, "H", 1, orientation, True)])
    turned = as_file(Image.fromarray(array[..., 0]), "TIFF", tiffinfo={274: orientation})
    assert np.array_equal(open_image(data, num_channels=5)[..., 0], np.asarray(open_image(turned, num_channels=1)))


def test_compressions_that_need_codecs():
    pytest.importorskip("imagecodecs")
    array = bands(5)
    data = tiff(array, **CONTIGUOUS, compression="lzw")
    assert np.array_equal(open_image(data, num_channels=5), array)


def test_white_may_be_zero():
    array = bands(5)
    data = tiff(255 - array, **CONTIGUOUS | {"photometric": "miniswhite"})
    assert np.array_equal(open_image(data, num_channels=5), array)


def test_tiff_files_need_tifffile(monkeypatch):
    data = tiff(bands(5), **CONTIGUOUS)
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(UndecodableImage, match=r"install tifffile \(pip install 'poa_hf\[tiff\]'\)"):
        open_image(data, num_channels=5)


def crop_arguments(channels, **options):
    return CropArguments(32, 16, 2, image_mean=[0.5] * channels, image_std=[0.25] * channels, **options)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_crops_are_pillows_of_each_channel(channels):
    array, args = bands(channels, size=(60, 80)), crop_arguments(channels)
    image = Image.fromarray(array[..., 0]) if channels == 1 else array
    crops, local_crops, _ = multi_crop(image, np.random.default_rng(3), args)
    assert crops.shape == (2, channels, 32, 32) and local_crops.shape == (2, channels, 16, 16)
    rng = np.random.default_rng(3)
    draw_augmentation(rng, args)
    boxes = draw_boxes(rng, 80, 60, np.array([0.32, 0.32, 0.05, 0.05]), np.array([1, 1, 0.32, 0.32]))
    for crop, box in zip([*crops, *local_crops], boxes.tolist(), strict=True):
        for channel, values in enumerate(crop):
            expected = Image.fromarray(array[..., channel]).crop(box).resize(values.shape, Image.Resampling.BICUBIC)
            assert np.abs(values.astype(int) - np.asarray(expected)).max() <= 2


def parameters(count, **values):
    neutral = draw_augmentation(np.random.default_rng(0), crop_arguments(3, color_jitter=[0.0] * 4))
    drawn = {name: torch.from_numpy(each)[:1].repeat(count, *[1] * (each.ndim - 1)) for name, each in neutral.items()}
    for name in ("flip", "jitter", "grayscale", "blur", "solarize"):
        drawn[name] = torch.zeros(count, dtype=torch.bool)
    return drawn | {name: torch.tensor([each] * count) for name, each in values.items()}


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_colours_change_only_where_they_mean_something(channels):
    crops = torch.from_numpy(bands(channels, size=(16, 16))).permute(2, 0, 1)[None]
    values, statistics = crops / 255, ([0.0] * channels, [1.0] * channels)
    for drawn in (
        parameters(1, grayscale=True, solarize=True),
        parameters(1, jitter=True, saturation=0.2, hue=0.4),
    ):
        assert torch.equal(augment(crops, drawn, *statistics), values)
        assert torch.equal(coloured(crops, drawn), values)
    bright = augment(crops, parameters(1, jitter=True, brightness=1.3), *statistics)
    torch.testing.assert_close(bright, (values * 1.3).clamp(max=1))
    contrast = augment(crops, parameters(1, jitter=True, contrast=0.6), *statistics)
    torch.testing.assert_close(contrast, values * 0.6 + values.mean() * 0.4)
    drawn = parameters(1, jitter=True, brightness=0.8, contrast=1.2, flip=True)
    torch.testing.assert_close(augment(crops, drawn, *statistics), coloured(crops, drawn))
    blurred = augment(crops, parameters(1, blur=True, sigma=1.0), *statistics)
    for channel in range(channels):
        alone = augment(crops[:, channel : channel + 1], parameters(1, blur=True, sigma=1.0), [0.0], [1.0])
        torch.testing.assert_close(blurred[:, channel : channel + 1], alone)


def test_each_channel_has_its_mean_and_deviation():
    crops = torch.full((1, 4, 8, 8), 51, dtype=torch.uint8)
    mean, std = [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.4, 0.8]
    expected = (0.2 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(augment(crops, parameters(1), mean, std)[0, :, 3, 3], expected)
    with pytest.raises(ValueError, match="4 channels, the mean 3 and the standard deviation 4"):
        augment(crops, parameters(1), mean[:3], std)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"image_mean": [0.5] * 5}, "image_mean has 5 numbers and image_std 3: give both one for each channel"),
        ({"image_mean": [], "image_std": []}, "image_mean"),
        ({"image_range": [1.0]}, r"image_range has 1 numbers: give 2 \(black, white\)"),
        ({"image_range": [5.0, 5.0]}, "give the smaller value first"),
    ],
)
def test_arguments_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        CropArguments(**options)


@pytest.mark.parametrize("streamed", [False, True])
def test_arrays_have_the_type_of_their_column(streamed):
    """Dark images of 16 bits hold no value that would tell them from 8 bits."""
    from poa_hf.evaluation.labelled import LabelledImages

    dark = [RNG.integers(0, 300, (6, 7, 5)).astype(np.uint16) for _ in range(2)]
    features = datasets.Features(image=datasets.Array3D((6, 7, 5), "uint16"), label=datasets.Value("int64"))
    dataset = datasets.Dataset.from_dict({"image": dark, "label": [0, 1]}, features=features)
    dataset = dataset.to_iterable_dataset() if streamed else dataset
    expected = [in_8_bits(each) for each in dark]
    rows = [row for _, batch in LabelledImages(dataset).batches(2, 0, 1) for row in batch]
    assert all(np.array_equal(open_image(row.image, num_channels=5), e) for row, e in zip(rows, expected, strict=True))
    mean, _ = measure_statistics(dataset, 5)
    np.testing.assert_allclose(mean, np.stack(expected).mean((0, 1, 2)) / 255, atol=1e-4)


def test_columns_of_arrays():
    images = [bands(5, size=(12, 12)) for _ in range(4)]
    features = datasets.Features(bands=datasets.Array3D((12, 12, 5), "uint8"), label=datasets.Value("int64"))
    dataset = datasets.Dataset.from_dict({"bands": images, "label": [0, 1, 2, 3]}, features=features)
    batches = []
    for each in (dataset, dataset.to_iterable_dataset(num_shards=2)):
        batch = next(iter(PretrainingLoader(each, crop_arguments(5), 4, (4, 4))))
        assert batch["global_crops"].shape == (8, 5, 32, 32) and not batch["bad_rows"]
        batches.append(batch)
    mean, std = measure_statistics(dataset, 5)
    values = np.stack(images) / 255
    np.testing.assert_allclose(mean, values.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(std, values.std((0, 1, 2)), atol=1e-4)
    assert measure_statistics(dataset.to_iterable_dataset(num_shards=2), 5) == (mean, std)
    with pytest.raises(ValueError, match="none of those tried can be decoded .*give image_mean and image_std, with 6"):
        measure_statistics(dataset, 6)


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_processor(tmp_path, channels):
    """Every channel is prepared as a grey image with its own mean and deviation, by the processor that was saved."""
    from transformers import AutoImageProcessor

    mean, std = [0.1 * (c + 1) for c in range(channels)], [0.2 + 0.1 * c for c in range(channels)]
    evaluation_processor(32, mean, std, image_range=(0, 500)).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert decoding_of(processor) == {"num_channels": channels, "value_range": [0, 500]}
    arrays = [bands(channels, size=(48, 40)), bands(channels, size=(37, 50))]
    images = [open_image(array, num_channels=channels) for array in arrays]
    prepared = prepared_images(processor, images)
    assert prepared.shape == (2, channels, 32, 32)
    for channel in range(channels):
        grey = [Image.fromarray(array[..., channel]).convert("RGB") for array in arrays]
        expected = evaluation_processor(32, mean[channel : channel + 1] * 3, std[channel : channel + 1] * 3)(
            grey, return_tensors="pt"
        )
        torch.testing.assert_close(prepared[:, channel], expected.pixel_values[:, 0])
