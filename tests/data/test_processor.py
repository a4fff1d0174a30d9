import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, ConvNextImageProcessorPil, ViTImageProcessorPil

from poa_hf.data.processor import evaluation_processor, prepared_images, resized_images, scaled_images

PROCESSORS = {
    1: evaluation_processor(24, [0.5], [0.2]),
    3: evaluation_processor(24),
    4: evaluation_processor(24, [0.1, 0.2, 0.3, 0.4], [0.5, 0.4, 0.3, 0.2]),
}


def images_of(channels):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (*size, channels), dtype=np.uint8) for size in ((40, 50), (64, 33), (24, 24))]
    if channels == 4:
        return arrays
    return [Image.fromarray(array if channels == 3 else array[..., 0]) for array in arrays]


@pytest.mark.parametrize("channels", PROCESSORS)
def test_resizing_and_scaling_one_after_the_other_is_preparing(channels):
    processor, images = PROCESSORS[channels], images_of(channels)
    resized = resized_images(processor, images)
    assert all(np.asarray(image).shape[:2] == (24, 24) and np.asarray(image).dtype == np.uint8 for image in resized)
    assert {type(image) for image in resized} == ({np.ndarray} if channels == 4 else {Image.Image})
    assert torch.equal(scaled_images(processor, resized), prepared_images(processor, images))


@pytest.mark.parametrize("processor", [ViTImageProcessorPil(), CLIPImageProcessorPil(), ConvNextImageProcessorPil()])
def test_resizing_and_scaling_with_stock_processors(processor):
    images = images_of(3)
    resized = resized_images(processor, images)
    assert torch.equal(scaled_images(processor, resized), prepared_images(processor, images))


def test_resized_images_are_pillows():
    image = images_of(3)[0]  # 50 x 40 pixels; the short side becomes 27
    expected = image.resize((round(50 * 27 / 40 - 0.5), 27), Image.Resampling.BICUBIC).crop((4, 1, 28, 25))
    assert np.array_equal(np.asarray(resized_images(PROCESSORS[3], [image])[0]), np.asarray(expected))
