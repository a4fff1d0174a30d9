import pickle
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from poa_hf.data.textures import TEXTURE_NAMES, TextureDataset
from poa_hf.evaluation.tasks.knn import knn_predictions


@pytest.fixture(scope="module")
def memory_and_test() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    def load(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        items = [TextureDataset(seed=seed)[i] for i in range(count)]
        images = np.stack([np.asarray(item["image"], dtype=np.float32) for item in items]) / 255
        return torch.from_numpy(images), torch.tensor([item["label"] for item in items])

    return *load(1, 1000), *load(2, 500)


def test_items_are_rgb_images_and_family_indices():
    dataset = TextureDataset(size=33)
    item = dataset[5]
    assert set(item) == {"image", "label"}
    assert isinstance(item["image"], Image.Image) and item["image"].mode == "RGB" and item["image"].size == (33, 33)
    assert type(item["label"]) is int and 0 <= item["label"] < len(TEXTURE_NAMES)
    assert len(dataset) == 2**31
    assert dataset.label_names is TEXTURE_NAMES and len(set(TEXTURE_NAMES)) == len(TEXTURE_NAMES) >= 8


def test_an_item_depends_on_seed_and_index_alone():
    dataset = TextureDataset(seed=3)
    other = pickle.loads(pickle.dumps(TextureDataset(seed=3, length=100)))  # as a worker process receives it
    list(map(other.__getitem__, range(5, 20)))  # what was read before leaves no trace
    for index in (7, np.int64(7), torch.tensor(7)):
        assert other[index]["image"].tobytes() == dataset[7]["image"].tobytes()
        assert other[index]["label"] == dataset[7]["label"]
    images = {TextureDataset(seed=seed)[index]["image"].tobytes() for seed in range(5) for index in range(5)}
    assert len(images) == 25


def test_the_images_are_the_same_everywhere():
    """A checksum of all families: it changes only when the textures are meant to change."""
    items = [TextureDataset(seed=11)[i] for i in range(60)]
    assert {item["label"] for item in items} == set(range(len(TEXTURE_NAMES)))
    assert zlib.crc32(b"".join(item["image"].tobytes() for item in items)) == 2716304431


def test_the_last_image_can_be_reached_and_none_beyond():
    dataset = TextureDataset(length=10)
    assert len([dataset[i] for i in range(10)]) == len(list(dataset)) == 10
    for index in (-1, 10, 2**40):
        with pytest.raises(IndexError, match="from 0 to 9"):
            dataset[index]
    assert TextureDataset()[2**31 - 1]["image"].size == (40, 40)


@pytest.mark.parametrize("size", [8, 9, 40, 224])
def test_every_family_can_be_drawn_in_any_size(size):
    dataset, seen = TextureDataset(size=size), set()
    for index in range(100):
        item = dataset[index]
        seen.add(item["label"])
        assert item["image"].size == (size, size)
        assert np.asarray(item["image"].convert("L")).std() > 3  # greyscale shows the structure, too
    assert seen == set(range(len(TEXTURE_NAMES)))


@pytest.mark.parametrize("arguments", [{"size": 7}, {"seed": -1}, {"length": -1}])
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(ValueError):
        TextureDataset(**arguments)


def test_labels_are_drawn_evenly(memory_and_test):
    counts = memory_and_test[1].bincount(minlength=len(TEXTURE_NAMES))
    assert counts.min() > 60 and counts.max() < 140  # 100 +- 4 standard deviations


def test_pixels_and_colours_do_not_give_the_family_away(memory_and_test):
    memory, labels, images, truth = memory_and_test
    for features in (lambda x: x.flatten(1), lambda x: torch.cat([x.mean((1, 2)), x.std((1, 2))], 1) - 0.4):
        accuracy = (knn_predictions(features(memory), labels, features(images), [20])[20] == truth).float().mean()
        assert accuracy < 0.3, accuracy


def test_local_structure_gives_the_family_away(memory_and_test):
    """Neighbours by the power spectrum of the luminance, which knows neither colour nor phase."""

    def spectrum(images: torch.Tensor) -> torch.Tensor:
        grey = images.mean(-1)
        power = torch.fft.rfft2(grey - grey.mean((1, 2), keepdim=True)).abs()
        power = torch.nn.functional.avg_pool2d(power[:, None], 2, ceil_mode=True)
        return (power + 0.1).log().flatten(1)

    memory, labels, images, truth = memory_and_test
    centre = spectrum(memory).mean(0)
    predicted = knn_predictions(spectrum(memory) - centre, labels, spectrum(images) - centre, [20])[20]
    assert (predicted == truth).float().mean() > 0.8
