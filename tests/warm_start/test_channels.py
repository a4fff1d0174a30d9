"""A model that starts from one of other channels: grey images keep their features."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SwinConfig,
    SwinModel,
)

from poa_hf import PoaConfig, PoaForPreTraining, init_from, warm_start_config
from poa_hf.cli.recipe import parse_recipe
from poa_hf.data.processor import evaluation_processor, prepared_images
from poa_hf.models.configuration_gn_resnet import GnResNetConfig
from poa_hf.models.modeling_gn_resnet import GnResNetModel

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
VIT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
STOCK = {
    "vit": lambda: Dinov2Model(Dinov2Config(**VIT)),
    "registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VIT, num_register_tokens=2)),
    "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**VIT, intermediate_size=64, num_register_tokens=2)),
    "swin": lambda: SwinModel(
        SwinConfig(image_size=64, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 4], window_size=4)
    ),
    "resnet": lambda: GnResNetModel(
        GnResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], base_width=8, num_groups=4)
    ),
}


def saved(folder, family, mean, std):
    torch.manual_seed(0)
    model = STOCK[family]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim > 1 else torch.nn.init.uniform_(parameter, 0.1, 0.5)
    model.save_pretrained(folder)
    evaluation_processor(32, mean, std).save_pretrained(folder)
    return model


def started(folder, channels, *statistics):
    config = warm_start_config(folder, num_channels=channels)
    model = PoaForPreTraining(PoaConfig(backbone_config=config, num_prototypes=[8], head_hidden_size=8))
    return model.eval(), init_from(model, folder, *statistics)


def grey_images(channels):
    values = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1), dtype=np.uint8)
    if channels in (1, 3):
        return [Image.fromarray(each[..., 0]).convert("L" if channels == 1 else "RGB") for each in values]
    return list(np.repeat(values, channels, axis=-1))


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("family", STOCK)
def test_grey_images_keep_their_features(tmp_path, family, channels):
    # a ResNet's first convolution has no bias, which other means per channel would need
    mean, std = ([0.45] * 3, IMAGENET[1]) if family == "resnet" else IMAGENET
    source = saved(tmp_path, family, mean, std)
    model, start = started(tmp_path, channels)
    assert f"first convolution adapted from 3 to {channels} channels" in str(start)
    average = [sum(mean) / 3] * channels, [sum(std) / 3] * channels
    with torch.no_grad():
        expected = source(prepared_images(evaluation_processor(64, mean, std), grey_images(3))).pooler_output
        pixels = prepared_images(evaluation_processor(64, *average), grey_images(channels))
        ours = model.teacher(pixels).pooler_output
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_given_statistics_are_considered(tmp_path):
    source = saved(tmp_path, "vit", *IMAGENET)
    statistics = [0.1, 0.3, 0.5, 0.9], [0.1, 0.2, 0.4, 0.8]
    model, _ = started(tmp_path, 4, *statistics)
    with torch.no_grad():
        expected = source(prepared_images(evaluation_processor(64, *IMAGENET), grey_images(3))).pooler_output
        ours = model.teacher(prepared_images(evaluation_processor(64, *statistics), grey_images(4))).pooler_output
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="image_mean has 3 numbers and image_std 3, and num_channels is 4"):
        started(tmp_path, 4, *IMAGENET)
    with pytest.raises(ValueError, match="^image_std is .0.0, 0.2, 0.4, 0.8.: give numbers above 0"):
        started(tmp_path, 4, statistics[0], [0.0, 0.2, 0.4, 0.8])


def test_one_channel_gets_the_sum_and_many_get_shares(tmp_path):
    """timm's rules, where the channels are normalised alike."""
    source = saved(tmp_path, "vit", [0.5] * 3, [0.5] * 3)
    total = source.embeddings.patch_embeddings.projection.weight.sum(dim=1, keepdim=True)
    for channels in (1, 4):
        model, _ = started(tmp_path, channels)
        weight = model.student.embeddings.patch_embeddings.projection.weight
        torch.testing.assert_close(weight, (total / channels).expand_as(weight))


def test_a_run_with_other_channels_starts_from_a_recipe(tmp_path):
    saved(tmp_path / "rgb", "vit", *IMAGENET)
    options = ["--init_from", str(tmp_path / "rgb"), "--model.backbone_config.num_channels", "1"]
    recipe = parse_recipe([*options, "--output_dir", str(tmp_path / "run")])
    assert recipe.model.backbone_config.num_channels == 1
    assert recipe.training.image_mean == pytest.approx([0.449]) and recipe.training.image_std == pytest.approx([0.226])
    same = parse_recipe([*options[:2], "--output_dir", str(tmp_path / "run")])
    assert same.model.backbone_config.num_channels == 3 and same.training.image_mean == IMAGENET[0]


def test_a_run_of_many_channels_is_a_source(tmp_path):
    saved(tmp_path / "rgb", "vit", *IMAGENET)
    model, _ = started(tmp_path / "rgb", 5)
    model.save_pretrained(tmp_path / "run")
    evaluation_processor(32, [0.2] * 5, [0.3] * 5, image_range=(0, 900)).save_pretrained(tmp_path / "run")
    recipe = parse_recipe(["--init_from", str(tmp_path / "run"), "--output_dir", str(tmp_path / "next")])
    assert recipe.model.backbone_config.num_channels == 5
    assert (recipe.training.image_mean, recipe.training.image_range) == ([0.2] * 5, [0, 900])
    next_model = PoaForPreTraining(recipe.model)
    assert init_from(next_model, tmp_path / "run").channels is None
    weights = zip(next_model.student.parameters(), model.teacher.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in weights)
