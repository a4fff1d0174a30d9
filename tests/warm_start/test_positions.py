"""Position embeddings of sources whose images are not square, or of another size than the run's."""

import pytest
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from poa_hf import warm_start_config

from .test_stock import DINOV2, MAE, SWIN, VIT, ours, started, tokens, with_own_weights

SHAPES = [(32, 48), (48, 32), (24, 64)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("model", "config", "fields"), [(ViTModel, ViTConfig, VIT), (ViTMAEModel, ViTMAEConfig, MAE)])
def test_a_source_of_images_that_are_not_square_computes_the_same_for_them(tmp_path, model, config, fields, shape):
    source = with_own_weights(model(config(**{**fields, "image_size": list(shape)})))
    source.save_pretrained(tmp_path)
    elastic, start = started(tmp_path)
    side = max(shape)
    assert elastic.config.backbone_config.image_size == side
    assert start.resized == ((shape[0] // 8, shape[1] // 8), side // 8)
    assert f"resized from {shape[0] // 8}x{shape[1] // 8} to {side // 8}x{side // 8} patches" in str(start)
    images = torch.randn(2, 3, *shape)
    expected = tokens(source, images, resizes=False)
    torch.testing.assert_close(ours(elastic, images), expected, rtol=1e-5, atol=1e-5)
    assert (ours(elastic, images) - expected).norm() < 2e-6 * expected.norm()


def test_the_square_in_between_is_as_smooth_as_the_source(tmp_path):
    """Embeddings that are linear in the place stay linear between the centres of the first and the last patch."""
    source = ViTModel(ViTConfig(**{**VIT, "image_size": [32, 64]}), add_pooling_layer=False).eval()
    rows = torch.arange(4.0).add(0.5)[:, None].expand(4, 8) / 4
    with torch.no_grad():
        source.embeddings.position_embeddings[:, 1:] = rows.reshape(1, 32, 1)
    source.save_pretrained(tmp_path)
    elastic, _ = started(tmp_path)
    square = elastic.teacher.embeddings.position_embeddings[0, 1:, 0].unflatten(0, (8, 8))
    expected = torch.arange(8.0).add(0.5)[:, None].expand(8, 8) / 8
    torch.testing.assert_close(square, expected, atol=0.04, rtol=0)


def test_a_swin_without_absolute_embeddings_has_none_to_resize(tmp_path):
    source = with_own_weights(SwinModel(SwinConfig(**{**SWIN, "image_size": [32, 48]})))
    source.save_pretrained(tmp_path)
    elastic, start = started(tmp_path)
    assert start.resized is None and elastic.config.backbone_config.image_size == 48
    images = torch.randn(1, 3, 32, 48)
    assert torch.equal(ours(elastic, images), tokens(source, images))


def test_dinov2_takes_its_embeddings_for_those_of_a_square(tmp_path):
    source = with_own_weights(Dinov2Model(Dinov2Config(**{**DINOV2, "image_size": [28, 112]})))  # 2 x 8 patches
    source.save_pretrained(tmp_path / "16")
    elastic, start = started(tmp_path / "16")
    assert elastic.config.backbone_config.image_size == 56 and start.resized is None
    for shape in ((28, 112), (56, 56), (84, 84)):
        images = torch.randn(1, 3, *shape)
        assert torch.equal(ours(elastic, images), tokens(source, images))
    Dinov2Config(**{**DINOV2, "image_size": [28, 42]}).save_pretrained(tmp_path / "6")
    with pytest.raises(ValueError, match=r"6 has position embeddings of 2x3 patches .*dinov2 itself cannot use.*\.$"):
        warm_start_config(tmp_path / "6")


def test_pixels_beyond_the_last_patch_are_dropped_as_by_the_source(tmp_path):
    source = with_own_weights(ViTModel(ViTConfig(**{**VIT, "image_size": 37}), add_pooling_layer=False))
    source.save_pretrained(tmp_path)
    elastic, start = started(tmp_path)
    assert elastic.config.backbone_config.image_size == 32 and start.resized is None
    images = torch.randn(1, 3, 37, 37)
    assert torch.equal(ours(elastic, images), tokens(source, images, resizes=False))


@pytest.mark.parametrize("size", [16, 64, 80])
@pytest.mark.parametrize(("model", "config", "fields"), [(ViTModel, ViTConfig, VIT), (ViTMAEModel, ViTMAEConfig, MAE)])
def test_another_image_size_is_interpolated_by_the_source_itself(tmp_path, model, config, fields, size):
    source = with_own_weights(model(config(**fields)))
    source.save_pretrained(tmp_path)
    elastic, start = started(tmp_path, image_size=size)
    assert start.resized == (4, size // 8)
    images = torch.randn(1, 3, size, size)
    assert torch.equal(ours(elastic, images), tokens(source, images))
