import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel, SwinConfig, SwinModel

from poa_hf import PoaForPreTraining
from poa_hf.evaluation.alterations.saliency import AT_A_TIME, patch_saliency

from ...conftest import golden_config


def test_saliency_of_a_vit_is_what_its_class_token_attends_to():
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)
    model = Dinov2Model(config).eval()
    images = torch.randn(AT_A_TIME + 3, 3, 32, 48)
    eager = Dinov2Model(type(config).from_dict(config.to_dict(), attn_implementation="eager")).eval()
    eager.load_state_dict(model.state_dict())
    with torch.no_grad():
        weights = eager(images, output_attentions=True).attentions[-1]  # (B, heads, N, N)
    expected = weights[:, :, 0, 1:].mean(dim=1).reshape(-1, 4, 6)
    torch.testing.assert_close(patch_saliency(model.train())(images), expected)
    assert model.training


@pytest.mark.parametrize("kind", ["swin", "resnet"])
def test_saliency_of_other_models_is_the_similarity_to_the_feature_of_the_image(kind):
    torch.manual_seed(0)
    if kind == "swin":
        config = SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
        model = SwinModel(config).eval()
    else:
        model = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])).eval()
    images = torch.randn(2, 3, 32, 32)
    found = patch_saliency(model)(images)
    with torch.no_grad():
        output = model(images)
    patches = output.last_hidden_state  # Swin: (B, N, D), ResNet: (B, D, h, w)
    patches = patches.flatten(2).transpose(1, 2) if patches.ndim == 4 else patches
    for image in range(2):
        pooled = output.pooler_output[image].flatten()
        for place, patch in enumerate(patches[image]):
            cosine = patch @ pooled / (patch.norm() * pooled.norm())
            assert found[image].flatten()[place].item() == pytest.approx(cosine.item(), abs=1e-5)


def test_saliency_of_an_elastic_model_is_that_of_its_full_size(family):
    model = PoaForPreTraining(golden_config(family)).eval().teacher
    images = torch.randn(2, 3, model.config.image_size, model.config.image_size)
    whole = patch_saliency(model.extract(model.config.space.full))(images)
    torch.testing.assert_close(patch_saliency(model)(images), whole, rtol=1e-4, atol=1e-5)
    assert whole.std() > 0
