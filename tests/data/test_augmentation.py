"""The batched colour work against Pillow's own operations and plain formulas, one crop at a time."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from poa_hf.data import CropArguments, augment
from poa_hf.data.augmentation import coloured
from poa_hf.data.crops import draw_augmentation

COUNT, SIDE = 12, 16
UNIT = ([0.0] * 3, [1.0] * 3)  # mean and standard deviation that change nothing
JITTER = {"brightness": 0, "contrast": 1, "saturation": 2, "hue": 3}


@pytest.fixture
def crops():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (COUNT, 5, 5, 3), dtype=np.uint8)
    images = [np.asarray(Image.fromarray(s).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for s in small]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def parameters(**changed):
    """Values that change nothing, except those given."""
    off = torch.zeros(COUNT, dtype=torch.bool)
    values = {name: off for name in ("flip", "jitter", "grayscale", "blur", "solarize")}
    values |= {name: torch.ones(COUNT) for name in ("brightness", "contrast", "saturation", "sigma")}
    values |= {"hue": torch.zeros(COUNT), "order": torch.arange(4, dtype=torch.uint8).repeat(COUNT, 1)}
    return values | changed


def pil_images(crops):
    return [Image.fromarray(c.permute(1, 2, 0).numpy()) for c in crops]


def tensor_of(images):
    return torch.stack([torch.from_numpy(np.array(i)) for i in images]).permute(0, 3, 1, 2) / 255


def every_second(value=True):
    return torch.arange(COUNT) % 2 == int(value)


def pil_jitter(image, name, factor):
    enhancer = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast}
    return enhancer.get(name, ImageEnhance.Color)(image).enhance(float(factor))


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_jitter_equals_pillow(crops, name):
    factors = torch.linspace(0.5, 1.5, COUNT)
    result = augment(crops, parameters(jitter=every_second(), **{name: factors}), *UNIT)
    expected = [pil_jitter(image, name, factors[i]) if i % 2 else image for i, image in enumerate(pil_images(crops))]
    assert (result - tensor_of(expected)).abs().max() <= 1.5 / 255


def test_hue_equals_a_turn_of_the_colour_circle(crops):
    import colorsys

    turns = torch.linspace(-0.4, 0.4, COUNT)
    result = augment(crops, parameters(jitter=torch.ones(COUNT, dtype=torch.bool), hue=turns), *UNIT)
    for i in (0, 3, 7):
        for y, x in ((0, 0), (5, 9), (15, 2)):
            h, s, v = colorsys.rgb_to_hsv(*(crops[i, :, y, x] / 255).tolist())
            expected = colorsys.hsv_to_rgb((h + float(turns[i])) % 1, s, v)
            assert result[i, :, y, x].tolist() == pytest.approx(expected, abs=1e-4)


def test_order_of_operations_is_each_crop_s_own(crops):
    rng = np.random.default_rng(1)
    orders = torch.from_numpy(rng.permuted(np.tile(np.arange(4, dtype=np.uint8), (COUNT, 1)), axis=1))
    names = ["brightness", "contrast", "saturation"]
    factors = {name: torch.from_numpy(rng.uniform(0.5, 1.5, COUNT).astype(np.float32)) for name in names}
    jitter = torch.ones(COUNT, dtype=torch.bool)
    result = augment(crops, parameters(jitter=jitter, order=orders, **factors), *UNIT)
    expected = []
    for i, image in enumerate(pil_images(crops)):
        for number in orders[i].tolist():
            if number < 3:
                image = pil_jitter(image, names[number], factors[names[number]][i])
        expected.append(image)
    # Pillow rounds to 8 bits after each of the three
    assert (result - tensor_of(expected)).abs().max() <= 5 / 255


def test_grey_flip_and_solarise_equal_pillow(crops):
    chosen = every_second()
    cases = {
        "grayscale": lambda image: image.convert("L").convert("RGB"),
        "solarize": lambda image: ImageOps.solarize(image, 128),
        "flip": ImageOps.mirror,
    }
    for name, operation in cases.items():
        result = augment(crops, parameters(**{name: chosen}), *UNIT)
        expected = [operation(image) if chosen[i] else image for i, image in enumerate(pil_images(crops))]
        assert (result - tensor_of(expected)).abs().max() <= 1.5 / 255, name


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 16])
def test_blur_is_a_gaussian_of_the_given_width(crops, side):
    crops = crops[:, :, :side, :side].contiguous()
    sigma = torch.linspace(0.1, 2, COUNT)
    result = augment(crops, parameters(blur=every_second(), sigma=sigma), *UNIT)
    radius = min(4, side - 1)
    for i in range(COUNT):
        image = crops[i].numpy() / 255
        if i % 2:
            weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma[i].item()) ** 2)
            weights /= weights.sum()
            for axis in (1, 2):
                padding = [(0, 0), (0, 0), (0, 0)]
                padding[axis] = (radius, radius)
                padded = np.pad(image, padding, mode="reflect")
                image = sum(w * np.take(padded, range(k, k + side), axis=axis) for k, w in enumerate(weights))
        assert np.abs(result[i].numpy() - image).max() < 1e-5


def test_normalisation_and_unchanged_input(crops):
    args = CropArguments()
    before = crops.clone()
    result = augment(crops, parameters(flip=every_second()), args.image_mean, args.image_std)
    assert torch.equal(crops, before)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (args.image_mean, args.image_std))
    assert torch.allclose(result[0], (crops[0] / 255 - mean) / std, atol=1e-6)
    assert result.dtype == torch.float32 and not result.requires_grad


def test_a_crop_does_not_depend_on_its_batch_nor_on_global_generators(crops):
    args = CropArguments(num_local_crops=COUNT - 2)
    values = {name: torch.from_numpy(v) for name, v in draw_augmentation(np.random.default_rng(0), args).items()}
    torch.manual_seed(0)
    whole = augment(crops, values, args.image_mean, args.image_std)
    for i in range(COUNT):
        torch.manual_seed(i)
        one = augment(crops[i : i + 1], {n: v[i : i + 1] for n, v in values.items()}, args.image_mean, args.image_std)
        assert torch.allclose(one[0], whole[i], atol=1e-5)


def test_no_crops_and_wrong_counts(crops):
    none = {name: value[:0] for name, value in parameters().items()}
    assert augment(crops[:0], none, *UNIT).shape == (0, 3, SIDE, SIDE)
    with pytest.raises(ValueError, match="12 crops, but parameters for 0"):
        augment(crops, none, *UNIT)


def test_autocast_does_not_lower_the_precision(crops):
    chosen = torch.ones(COUNT, dtype=torch.bool)
    plain = augment(crops, parameters(blur=chosen), *UNIT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(crops, parameters(blur=chosen), *UNIT), plain)


@pytest.mark.parametrize("backend", [None, pytest.param("inductor", marks=pytest.mark.slow)])
def test_all_crops_at_once_are_coloured_as_each_operation_by_itself(crops, backend):
    rng = np.random.default_rng(1)
    drawn = draw_augmentation(rng, CropArguments(num_local_crops=COUNT - 2))
    values = {name: torch.from_numpy(array) for name, array in drawn.items()}
    together = coloured if backend is None else torch.compile(coloured, dynamic=False, fullgraph=True, backend=backend)
    expected = augment(crops, values, *UNIT)
    torch.testing.assert_close(augment(crops, values, *UNIT, together), expected, rtol=0, atol=1e-5)
    assert (augment(crops, values, *UNIT) - crops / 255).abs().max() > 0.1
