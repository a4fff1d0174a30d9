"""Training on images of other channels than red, green and blue: what is measured, saved and extracted."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from poa_hf import PoaConfig, PoaForPreTraining, PoaTrainer
from poa_hf.data.statistics import measure_statistics
from poa_hf.evaluation.subject import load_subject
from poa_hf.models.from_fields import model_config

from ..conftest import GOLDEN_BACKBONES, tiny_backbone, tiny_config
from .test_trainer import arguments


def arrays(channels, count=8):
    rng = np.random.default_rng(0)
    means = rng.integers(0, 200, (count, 1, 1, channels))
    return [(mean + rng.integers(0, 56, (36, 40, channels))).astype(np.uint8) for mean in means]


BACKBONES = GOLDEN_BACKBONES | {
    "registers": GOLDEN_BACKBONES["vit"] | {"model_type": "poa_dinov2_with_registers", "num_register_tokens": 2},
    "dinov3": GOLDEN_BACKBONES["vit"] | {"model_type": "poa_dinov3_vit", "num_register_tokens": 2},
}


def model_of(family, channels) -> PoaForPreTraining:
    fields = BACKBONES[family] | {"num_channels": channels}
    heads = {"head_hidden_size": 16, "head_bottleneck_size": 8, "num_prototypes": [16]}
    config = model_config({"backbone_config": fields, **heads})
    assert isinstance(config, PoaConfig)
    return PoaForPreTraining(config)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "family, channels",
    [("vit", 5), ("resnet", 1)]
    + [
        pytest.param(*each, marks=SLOW)
        for each in [("vit", 1), ("resnet", 5), ("swin", 1), ("registers", 5), ("registers", 1), ("dinov3", 5)]
    ],
)
def test_every_family_trains_and_is_extracted(tmp_path, family, channels, caplog):
    caplog.set_level(logging.INFO)
    model = model_of(family, channels)
    crops = {"swin": {"global_crop_size": 128, "local_crop_size": 64}, "resnet": {"global_crop_size": 64}}
    args = arguments(tmp_path / "run", max_steps=1, **crops.get(family, {}) | {"num_local_crops": 1})
    images = arrays(channels)
    PoaTrainer(model, args, images).train()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run")
    expected = ([0.449], [0.226]) if channels == 1 else measure_statistics(images, channels)
    assert (list(processor.image_mean), list(processor.image_std)) == expected
    assert "saturation, hue, grey and solarisation are left out" in caplog.text
    assert ("Measured on the images: --image_mean" in caplog.text) == (channels == 5)
    subject = load_subject(tmp_path / "run")
    smallest = str(model.config.backbone_config.space.smallest)
    assert subject.widths([smallest], torch.device("cpu"))
    subject.model.extract(smallest).save_pretrained(tmp_path / "small")
    small = AutoModel.from_pretrained(tmp_path / "small").eval()
    pixels = torch.randn(2, channels, 64, 64)
    with torch.no_grad():
        sliced = subject.model.eval()(pixels, sub_network=smallest).last_hidden_state
        assert torch.equal(small(pixels).last_hidden_state, sliced)


def test_given_statistics_stay(tmp_path):
    model = PoaForPreTraining(tiny_config(tiny_backbone(num_channels=4)))
    given = {"image_mean": [0.1, 0.2, 0.3, 0.4], "image_std": [0.5] * 4}
    trainer = PoaTrainer(model, arguments(tmp_path, **given), arrays(4))
    assert (trainer.args.image_mean, trainer.args.image_std) == (given["image_mean"], given["image_std"])


@pytest.mark.parametrize(
    "statistics, images, message",
    [
        (
            {"image_mean": [0.5] * 4, "image_std": [0.5] * 4},
            arrays(5),
            "4 numbers each, and num_channels is 5: give one",
        ),
        ({}, [Image.new("RGB", (40, 40))], "none of those tried can be decoded .it holds 3 channels .RGB., where"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, statistics, images, message):
    model = PoaForPreTraining(tiny_config(tiny_backbone(num_channels=5)))
    with pytest.raises(ValueError, match=message):
        PoaTrainer(model, arguments(tmp_path, **statistics), images)
