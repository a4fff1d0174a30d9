import pytest
import torch
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from poa_hf.evaluation.features import class_features


def dinov2() -> Dinov2Model:
    torch.manual_seed(0)
    return Dinov2Model(
        Dinov2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, drop_path_rate=0.5
        )
    )


def test_features_are_the_normalised_class_token_in_evaluation_mode():
    model = dinov2().train()
    model.layernorm.eval()  # a frozen part
    images = torch.randn(5, 3, 32, 32)
    features = class_features(model, (batch for batch in images.split(2)))
    assert model.training and model.encoder.training and not model.layernorm.training
    assert features.shape == (5, 32) and features.dtype == torch.float32
    with torch.no_grad():
        expected = model.eval()(pixel_values=images).last_hidden_state[:, 0]
    torch.testing.assert_close(features, expected)
    (features @ torch.ones(32, requires_grad=True)).sum().backward()  # no inference tensor: a probe can train on it
    assert class_features(model.bfloat16(), [images]).dtype == torch.float32


def test_features_of_other_families():
    images = [torch.randn(3, 3, 32, 32)]
    vit = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    assert class_features(ViTModel(vit, add_pooling_layer=False), images).shape == (3, 32)
    swin = SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    assert class_features(SwinModel(swin), images).shape == (3, 16)
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    assert class_features(ResNetModel(resnet), images).shape == (3, 16)


def test_models_and_batches_without_features_are_refused():
    model = Dinov2ForImageClassification(dinov2().config).train()
    with pytest.raises(ValueError, match="without a task's head"):
        class_features(model, [torch.randn(1, 3, 32, 32)])
    assert model.training
    with pytest.raises(ValueError, match="at least one batch"):
        class_features(dinov2(), [])
