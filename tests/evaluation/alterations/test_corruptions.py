"""Each corruption does what its definition says, computed here pixel by pixel."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import MobileViTImageProcessorPil

from poa_hf.data.processor import evaluation_processor, resized_images
from poa_hf.data.textures import TextureDataset
from poa_hf.evaluation.alterations.alteration import random_of
from poa_hf.evaluation.alterations.corruptions import CORRUPTIONS, STRENGTHS, Corruption, corrupted
from poa_hf.evaluation.features import class_features
from poa_hf.evaluation.images.split_features import image_features
from poa_hf.evaluation.labelled import LabelledImages
from poa_hf.evaluation.processes import Processes
from poa_hf.evaluation.subject import Subject

from ..image_folders import table

SIZES = [(32, 32), (224, 224), (20, 28), (64, 90), (260, 300)]
# By corruption, the parameter at the five strengths as published for CIFAR-10-C and ImageNet-C.
PUBLISHED = {
    "gaussian_noise": {32: [0.04, 0.06, 0.08, 0.09, 0.1], 224: [0.08, 0.12, 0.18, 0.26, 0.38]},
    "shot_noise": {32: [500, 250, 100, 75, 50], 224: [60, 25, 12, 5, 3]},
    "gaussian_blur": {32: [0.4, 0.6, 0.7, 0.8, 1], 224: [1, 2, 3, 4, 6]},
    "jpeg": {32: [80, 65, 58, 50, 40], 224: [25, 18, 15, 10, 7]},
    "brightness": {32: [0.05, 0.1, 0.15, 0.2, 0.3], 224: [0.1, 0.2, 0.3, 0.4, 0.5]},
    "contrast": {32: [0.75, 0.5, 0.4, 0.3, 0.15], 224: [0.4, 0.3, 0.2, 0.1, 0.05]},
}
AT_PUBLISHED_SIZES = [(side, strength) for side in (32, 224) for strength in STRENGTHS]


def rng():
    return np.random.default_rng(3)


def photo(height=32, width=32, channels=3, seed=1):
    """A texture of any shape and number of channels, as an array."""
    side = max(height, width, 8)
    images = [np.asarray(TextureDataset(side, seed, 10)[index]["image"]) for index in range(-(-channels // 3))]
    return np.ascontiguousarray(np.concatenate(images, axis=-1)[:height, :width, :channels])


def as_image(pixels):
    return Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])


def rounded(values):
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def differ_by(result, expected):
    """The largest difference of two images with 8 bits per channel."""
    return int(np.abs(np.asarray(result).astype(int) - np.asarray(expected).astype(int)).max())


def naive_blur(pixels, deviation):
    """Each pixel is a weighted mean of its column, then of its row, up to four deviations away."""
    reach = int(4 * deviation + 0.5)
    weights = np.array([np.exp(-(tap**2) / (2 * deviation**2)) for tap in range(-reach, reach + 1)])
    weights /= weights.sum()
    result = pixels / 255
    for axis in (0, 1):
        last = result.shape[axis] - 1
        taps = range(-reach, reach + 1)
        near = [result.take(np.clip(np.arange(last + 1) + tap, 0, last), axis) for tap in taps]
        result = sum(weight * moved for weight, moved in zip(weights, near, strict=True))
    return rounded(result)


@pytest.mark.parametrize("side, strength", AT_PUBLISHED_SIZES)
def test_gaussian_blur_has_the_published_deviation(side, strength):
    pixels = photo(side, side)
    expected = naive_blur(pixels, PUBLISHED["gaussian_blur"][side][strength - 1])
    assert differ_by(corrupted(as_image(pixels), "gaussian_blur", strength, rng()), expected) <= 1


@pytest.mark.parametrize("side, strength", AT_PUBLISHED_SIZES)
def test_contrast_is_pulled_towards_the_mean_by_the_published_factor(side, strength):
    pixels = photo(side, side)
    factor = PUBLISHED["contrast"][side][strength - 1]
    mean = (pixels / 255).mean((0, 1))
    expected = rounded((pixels / 255 - mean) * factor + mean)
    assert differ_by(corrupted(as_image(pixels), "contrast", strength, rng()), expected) <= 1


@pytest.mark.parametrize("side, strength", AT_PUBLISHED_SIZES)
def test_brightness_adds_to_the_value_of_hsv(side, strength):
    import colorsys

    pixels = photo(side, side)
    pixels[0, 0] = 0  # black has no hue
    result = np.asarray(corrupted(as_image(pixels), "brightness", strength, rng()))
    for row, column in [(0, 0), *np.random.default_rng(0).integers(side, size=(40, 2)).tolist()]:
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixels[row, column] / 255))
        brighter = min(1, value + PUBLISHED["brightness"][side][strength - 1])
        expected = rounded(np.array(colorsys.hsv_to_rgb(hue, saturation, brighter)))
        assert differ_by(result[row, column], expected) <= 1


@pytest.mark.parametrize("side, strength", AT_PUBLISHED_SIZES)
def test_jpeg_has_the_published_quality(side, strength):
    pixels = photo(side, side)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=PUBLISHED["jpeg"][side][strength - 1])
    result = corrupted(as_image(pixels), "jpeg", strength, rng())
    assert np.array_equal(np.asarray(result), np.asarray(Image.open(file)))


@pytest.mark.parametrize("side, strength", AT_PUBLISHED_SIZES)
def test_noise_has_the_published_spread(side, strength):
    """Measured on a grey image that is far enough from black and white for little to be cut off."""
    grey = np.full((side, side, 3), 128, np.uint8)
    number = grey.size
    gaussian = PUBLISHED["gaussian_noise"][side][strength - 1]
    photons = PUBLISHED["shot_noise"][side][strength - 1]
    for name, values in {
        "gaussian_noise": 128 / 255 + gaussian * np.random.default_rng(0).standard_normal(number),
        "shot_noise": np.random.default_rng(0).poisson(128 / 255 * photons, number) / photons,
    }.items():
        result = np.asarray(corrupted(as_image(grey), name, strength, rng())) / 255
        expected = np.clip(values, 0, 1)
        assert result.std() == pytest.approx(expected.std(), rel=0.05)
        assert result.mean() == pytest.approx(expected.mean(), abs=0.02)


def naive_motion(pixels, radius, deviation, angle):
    """Each pixel is the mean of those along a line, the nearest of which counts most."""
    height, width, _ = pixels.shape
    result = np.zeros(pixels.shape)
    for row in range(height):
        for column in range(width):
            total = 0.0
            for step in range(2 * radius + 1):
                weight = np.exp(-(step**2) / (2 * deviation**2))
                y = min(max(row + int(np.rint(step * np.sin(angle))), 0), height - 1)
                x = min(max(column + int(np.rint(step * np.cos(angle))), 0), width - 1)
                result[row, column] += weight * pixels[y, x] / 255
                total += weight
            result[row, column] /= total
    return rounded(result)


@pytest.mark.parametrize("strength, radius, deviation", [(1, 6, 1), (3, 6, 2), (5, 9, 2.5)])
def test_motion_blur_is_a_mean_along_a_line(strength, radius, deviation):
    pixels = photo(32, 32)
    angle = np.deg2rad(rng().uniform(-45, 45))
    expected = naive_motion(pixels, radius, deviation, angle)
    assert differ_by(corrupted(as_image(pixels), "motion_blur", strength, rng()), expected) <= 1


def test_between_the_published_sizes_parameters_lie_between_theirs():
    """84 pixels are in the middle of 32 and 224 on the scale of doublings: the geometric mean of both parameters."""
    pixels = photo(85, 85)  # sqrt(32 * 224) = 84.7
    mean = (pixels / 255).mean((0, 1))
    expected = rounded((pixels / 255 - mean) * np.sqrt(0.75 * 0.4) + mean)
    assert differ_by(corrupted(as_image(pixels), "contrast", 1, rng()), expected) <= 1


@pytest.mark.parametrize("side, deviation", [(448, 2 * 2), (20, 0.6)])
def test_lengths_grow_with_large_images_and_stay_with_tiny_ones(side, deviation):
    pixels = photo(side, side + 5)
    assert differ_by(corrupted(as_image(pixels), "gaussian_blur", 2, rng()), naive_blur(pixels, deviation)) <= 1


def test_what_is_no_length_stays_with_large_images():
    pixels = photo(448, 448)
    mean = (pixels / 255).mean((0, 1))
    assert differ_by(corrupted(pixels, "contrast", 3, rng()), rounded((pixels / 255 - mean) * 0.2 + mean)) <= 1


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 4, 12])
def test_any_image_keeps_its_type_and_shape_and_is_not_changed_in_place(name, size, channels):
    pixels = photo(*size, channels)
    image = as_image(pixels.copy()) if channels in (1, 3) else pixels.copy()
    result = corrupted(image, name, 4, rng())
    assert isinstance(result, np.ndarray) == isinstance(image, np.ndarray)
    if isinstance(image, Image.Image):
        assert result.mode == image.mode and result.size == image.size
    else:
        assert result.dtype == np.uint8 and result.shape == pixels.shape
    assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)
    assert not np.array_equal(np.asarray(result).reshape(pixels.shape), pixels)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_strength_takes_more_away_than_the_one_before(name):
    errors = []
    for strength in STRENGTHS:
        results = [
            np.asarray(corrupted(as_image(photo(seed=seed)), name, strength, np.random.default_rng(seed))) - 0.0
            for seed in range(8)
        ]
        errors.append(np.mean([np.abs(result - photo(seed=seed)).mean() for seed, result in enumerate(results)]))
    assert errors[0] > 0
    # motion at 32 pixels: strength 4 differs from 3 in the length that hardly counts
    assert all(b >= a * 0.999 for a, b in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_equal_random_numbers_give_equal_images(name):
    image = as_image(photo())
    first, again = (corrupted(image, name, 3, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(np.asarray(first), np.asarray(again))
    if name in ("gaussian_noise", "shot_noise", "motion_blur"):
        other = corrupted(image, name, 3, np.random.default_rng(8))
        assert not np.array_equal(np.asarray(first), np.asarray(other))


PROCESSOR = evaluation_processor(32, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def features_of(model, processor, dataset, alterations, **options):
    subject = Subject("tiny", model, processor)
    models = subject.callables(["32x3"])
    images = LabelledImages(dataset)
    return image_features(models, images, processor, {"32x3": 0}, Processes(), alterations=alterations, **options)


def test_images_are_corrupted_as_the_model_sees_them(tiny_model):
    """Resized and cropped first, whatever the batch; the random numbers come from the file's content."""
    dataset, corruptions = table(9), [Corruption("gaussian_noise", 2, 5), Corruption("contrast", 3)]
    found = features_of(tiny_model.teacher, PROCESSOR, dataset, corruptions, batch_size=4)
    seen = resized_images(PROCESSOR, [row["image"] for row in dataset])
    for corruption in corruptions:
        changed = []
        for image, image_id in zip(seen, found.ids, strict=True):
            numbers = random_of(image_id.hash, corruption.seed, corruption.name)
            changed.append(corrupted(image, corruption.name, corruption.strength, numbers))
        pixels = torch.tensor(np.stack([np.asarray(image) for image in changed])).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (PROCESSOR.image_mean, PROCESSOR.image_std))
        expected = class_features(tiny_model.teacher.extract("32x3"), [(pixels - mean) / std])
        torch.testing.assert_close(found.altered["32x3"][corruption].features, expected, rtol=1e-4, atol=1e-5)


def test_what_an_image_becomes_does_not_depend_on_batches_or_workers(tiny_model):
    corruptions = [Corruption(name, 4) for name in CORRUPTIONS]
    alone = features_of(tiny_model.teacher, PROCESSOR, table(9), corruptions, batch_size=9)
    helped = features_of(tiny_model.teacher, PROCESSOR, table(9), corruptions, batch_size=2, num_workers=2)
    for corruption in corruptions:
        features, again = (found.altered["32x3"][corruption].features for found in (alone, helped))
        torch.testing.assert_close(features, again)
        assert not torch.allclose(features, alone.features["32x3"])


def test_a_processor_that_does_more_than_resize_and_scale(tiny_model):
    turned = MobileViTImageProcessorPil(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )  # red and blue change places
    with pytest.raises(ValueError, match="^MobileViTImageProcessorPil does more than resize, crop and scale"):
        features_of(tiny_model.teacher, turned, table(3), [Corruption("contrast", 1)])
