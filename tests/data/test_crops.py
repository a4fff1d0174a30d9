"""Crops: sizes, the statistics of boxes and colour values, and what draft decoding may not change."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from poa_hf.data import CropArguments, multi_crop
from poa_hf.data.crops import draw_augmentation, draw_boxes
from poa_hf.data.decoding import open_lazily

ARGS = CropArguments(global_crop_size=32, local_crop_size=16, num_local_crops=4)


def smooth_image(width: int, height: int) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def as_file(image: Image.Image, format: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_shapes_and_reproducibility():
    image = smooth_image(60, 40)
    global_crops, local_crops, augmentation = multi_crop(image, np.random.default_rng([0, 1, 2]), ARGS)
    assert global_crops.shape == (2, 3, 32, 32) and global_crops.dtype == np.uint8
    assert local_crops.shape == (4, 3, 16, 16)
    assert {len(v) for v in augmentation.values()} == {6}
    again = multi_crop(image, np.random.default_rng([0, 1, 2]), ARGS)
    other = multi_crop(image, np.random.default_rng([0, 1, 3]), ARGS)
    assert np.array_equal(again[0], global_crops) and np.array_equal(again[1], local_crops)
    assert not np.array_equal(other[0], global_crops)


@pytest.mark.parametrize("size", [(500, 375), (90, 120), (20, 30), (3, 200), (1, 1)])
def test_crops_are_those_of_pillow_up_to_rounding(size):
    """Noise and hard edges, made smaller and larger: what is cut is `crop(box).resize`, as torchvision does it."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    noise[: size[1] // 2] = np.where(noise[: size[1] // 2] > 127, 255, 0)
    image = Image.fromarray(noise)
    differing = 0.0
    for seed in range(5):
        crops = multi_crop(image, np.random.default_rng(seed), ARGS)
        rng = np.random.default_rng(seed)
        draw_augmentation(rng, ARGS)
        low, high = np.array([ARGS.global_crop_scale] * 2 + [ARGS.local_crop_scale] * 4).T
        for box, crop in zip(draw_boxes(rng, *size, low, high).tolist(), [*crops[0], *crops[1]], strict=True):
            expected = image.crop(box).resize(crop.shape[1:], Image.Resampling.BICUBIC)
            difference = np.abs(np.asarray(expected).transpose(2, 0, 1).astype(int) - crop)
            assert difference.max() <= 2  # of 255
            differing = max(differing, (difference > 0).mean())
    assert differing < 0.02


def test_no_local_crops():
    args = CropArguments(global_crop_size=32, local_crop_size=16, num_local_crops=0)
    _, local_crops, augmentation = multi_crop(smooth_image(60, 40), np.random.default_rng(0), args)
    assert local_crops.shape == (0, 3, 16, 16)
    assert {len(v) for v in augmentation.values()} == {2}


@pytest.mark.parametrize("size", [(500, 375), (32, 32), (1, 1), (3, 200), (1000, 2)])
def test_boxes_lie_in_the_image_and_have_the_asked_area(size):
    width, height = size
    low, high = np.full(4000, 0.32), np.full(4000, 1.0)
    left, top, right, bottom = draw_boxes(np.random.default_rng(0), width, height, low, high).T
    assert (left >= 0).all() and (top >= 0).all() and (right <= width).all() and (bottom <= height).all()
    assert (right > left).all() and (bottom > top).all()
    if min(size) > 30:
        share = (right - left) * (bottom - top) / (width * height)
        assert share.min() > 0.29 and share.max() <= 1
        aspect = (right - left) / (bottom - top)
        assert aspect.min() > 0.7 and aspect.max() < 1.43
        assert left.min() == 0 and right.max() == width


def test_boxes_have_the_statistics_of_the_naive_loop():
    rng = np.random.default_rng(0)

    def naive():
        for _ in range(10):
            area = 160 * 120 * rng.uniform(0.3, 0.9)
            aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < w <= 160 and 0 < h <= 120:
                top, left = rng.integers(0, 120 - h + 1), rng.integers(0, 160 - w + 1)
                return left, top, left + w, top + h
        raise AssertionError("not needed for this image")

    expected = np.array([naive() for _ in range(6000)])
    boxes = draw_boxes(np.random.default_rng(1), 160, 120, np.full(6000, 0.3), np.full(6000, 0.9))
    np.testing.assert_allclose(boxes.mean(axis=0), expected.mean(axis=0), atol=2)
    np.testing.assert_allclose(boxes.std(axis=0), expected.std(axis=0), atol=2)


def test_box_that_never_fits_falls_back_to_the_centre():
    boxes = draw_boxes(np.random.default_rng(0), 400, 20, np.ones(3), np.ones(3))
    assert boxes.tolist() == [[186, 0, 213, 20]] * 3
    boxes = draw_boxes(np.random.default_rng(0), 20, 400, np.ones(3), np.ones(3))
    assert boxes.tolist() == [[0, 186, 20, 213]] * 3


def test_colour_values_follow_the_arguments():
    rng = np.random.default_rng(0)
    drawn = [draw_augmentation(rng, ARGS) for _ in range(3000)]
    values = {name: np.stack([d[name] for d in drawn]) for name in drawn[0]}
    share = {name: values[name].mean(axis=0) for name in ("flip", "jitter", "grayscale", "blur", "solarize")}
    np.testing.assert_allclose(share["flip"], 0.5, atol=0.04)
    np.testing.assert_allclose(share["jitter"], 0.8, atol=0.04)
    np.testing.assert_allclose(share["grayscale"], 0.2, atol=0.04)
    np.testing.assert_allclose(share["blur"], [1.0, 0.1, 0.5, 0.5, 0.5, 0.5], atol=0.04)
    np.testing.assert_allclose(share["solarize"], [0, 0.2, 0, 0, 0, 0], atol=0.04)
    ranges = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}
    for name, (low, high) in (ranges | {"sigma": (0.1, 2.0)}).items():
        assert values[name].min() == pytest.approx(low, abs=0.01)
        assert values[name].max() == pytest.approx(high, abs=0.01)
        assert values[name].dtype == np.float32
    order = values["order"].reshape(-1, 4)
    assert (np.sort(order, axis=1) == np.arange(4)).all()
    assert len(np.unique(order, axis=0)) == 24
    np.testing.assert_allclose((order[:, 0][:, None] == np.arange(4)).mean(axis=0), 0.25, atol=0.02)


def jpeg(image: Image.Image, orientation: int = 1, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return as_file(image, "JPEG", exif=exif, **{"quality": 95} | options)


def textured_image(width: int, height: int, cell: int) -> Image.Image:
    small = np.random.default_rng(5).integers(0, 256, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def differences(data: bytes, args: CropArguments, seeds: int = 6) -> np.ndarray:
    """Differences between our crops of a JPEG and the same boxes cut from the whole image by Pillow, per channel."""
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    low, high = np.array([args.global_crop_scale] * 2 + [args.local_crop_scale] * args.num_local_crops).T
    found = []
    for seed in range(seeds):
        crops = multi_crop(open_lazily(data), np.random.default_rng(seed), args)
        rng = np.random.default_rng(seed)
        draw_augmentation(rng, args)
        for box, crop in zip(draw_boxes(rng, *upright.size, low, high).tolist(), [*crops[0], *crops[1]], strict=True):
            expected = upright.crop(box).resize(crop.shape[1:], Image.Resampling.BICUBIC)
            found.append(crop.transpose(1, 2, 0).astype(int) - np.asarray(expected))
    return np.array([np.abs(each).mean() for each in found])


@pytest.fixture
def decoded_sizes(monkeypatch):
    """The sizes of the images that crops are cut from, while they are shrunk."""
    sizes = set()
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, *a, **k: sizes.add(self.size) or resize(self, *a, **k))
    return sizes


@pytest.mark.parametrize("size", [(801, 603), (525, 637), (1608, 1208)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_crops_of_a_shrunk_jpeg_show_what_pillow_cuts_from_the_whole(size, orientation, decoded_sizes):
    data = jpeg(textured_image(*size, cell=60), orientation)
    decoded_sizes.clear()
    multi_crop(open_lazily(data), np.random.default_rng(0), ARGS)
    assert max(map(max, decoded_sizes)) <= (max(size) + 1) / 2  # it was shrunk
    assert differences(data, ARGS, seeds=2).mean() < 0.5


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 75}])
def test_shrunk_jpegs_of_every_kind(mode, options):
    data = jpeg(textured_image(601, 463, cell=20).convert(mode), 6, **options)
    assert differences(data, ARGS).mean() < 0.5


@pytest.mark.parametrize("kind", ["noise", "sky"])
def test_fine_detail_survives_shrinking(kind):
    """Detail of one pixel, which shrinking blurs in another way than resizing: only much larger images are shrunk."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(603, 801, 3))
    if kind == "sky":  # photographs have amplitudes of 1 / frequency
        frequency = np.hypot(np.fft.fftfreq(603)[:, None], np.fft.rfftfreq(801))[..., None]
        pixels = np.fft.irfft2(np.fft.rfft2(pixels, axes=(0, 1)) / np.maximum(frequency, 1e-3), (603, 801), axes=(0, 1))
    pixels = 128 + 55 * (pixels - pixels.mean()) / pixels.std()
    data = jpeg(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    assert differences(data, ARGS).mean() < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("width", range(640, 657))
@pytest.mark.parametrize("height", [480, 483, 487])
def test_any_side_lengths(width, height):
    for orientation in (1, 3, 6):
        assert differences(jpeg(textured_image(width, height, cell=40), orientation), ARGS, seeds=3).mean() < 0.5


def test_draft_keeps_the_resolution_of_every_crop(monkeypatch):
    sizes = []
    resize = Image.Image.resize

    def spy(self, size, resample, box):
        sizes.append((size, box[2] - box[0], box[3] - box[1]))
        return resize(self, size, resample, box=box)

    monkeypatch.setattr(Image.Image, "resize", spy)
    data = as_file(Image.new("RGB", (700, 500)), "JPEG")
    for seed in range(30):
        multi_crop(open_lazily(data), np.random.default_rng(seed), ARGS)
    assert all(width >= size[0] - 1e-6 and height >= size[1] - 1e-6 for size, width, height in sizes)


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {}), ("TIFF", {}), ("MPO", {"save_all": True})])
def test_an_image_given_by_the_caller_is_left_alone(kind, options):
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = [smooth_image(1600, 1200), smooth_image(160, 120)]  # phones add a small one
    data = as_file(pictures[0], kind, exif=exif, **options | {"append_images": pictures[1:]} if options else {})
    image = Image.open(io.BytesIO(data))
    first = multi_crop(open_lazily(image), np.random.default_rng(0), ARGS)
    second = multi_crop(open_lazily(image), np.random.default_rng(0), ARGS)
    assert np.array_equal(first[0], second[0])
    assert image.format == kind and image.size == Image.open(io.BytesIO(data)).size
    assert np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("global_crop_size", 0),
        ("local_crop_size", -1),
        ("num_local_crops", -1),
        ("max_image_pixels", 0),
        ("global_crop_scale", [1.0, 0.32]),
        ("local_crop_scale", [0.0, 0.3]),
        ("local_crop_scale", [0.1, 1.3]),
        ("global_crop_scale", [0.5]),
        ("mask_ratio", [0.5, 0.1]),
        ("mask_probability", 1.5),
        ("flip_probability", -0.1),
        ("blur_probability", [1.0, 0.1]),
        ("blur_probability", [1.0, 0.1, 2.0]),
        ("color_jitter", [0.4, 0.4, 0.2, 0.6]),
        ("color_jitter", [0.4]),
        ("image_std", [0.2, 0.2, 0.0]),
    ],
)
def test_invalid_arguments_are_refused_in_one_sentence(field, value):
    with pytest.raises(ValueError, match=f"^{field} [^\n]*\\.$"):
        CropArguments(**{field: value})


def test_arguments_can_be_parsed_from_a_command_line():
    from transformers import HfArgumentParser

    (args,) = HfArgumentParser(CropArguments).parse_args_into_dataclasses(
        ["--local_crop_scale", "0.1", "0.4", "--num_local_crops", "2"]
    )
    assert args.local_crop_scale == [0.1, 0.4] and args.num_local_crops == 2
    assert args.color_jitter == [0.4, 0.4, 0.2, 0.1]
