import copy

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from poa_hf.figures.patches import (
    attention_maps,
    patch_correspondence,
    patch_features,
    patch_foreground,
    patch_pca,
)

from ..test_contract import PUBLISHED, VITS, tiny
from .models import TINY_VIT, elastic, images, strengthen


@torch.no_grad()
def eager_attention(model, pixels, **options) -> torch.Tensor:
    model = copy.deepcopy(model).eval()
    model.set_attn_implementation("eager")
    return model(pixels, output_attentions=True, **options).attentions[-1]


@pytest.mark.parametrize("family", VITS)
@pytest.mark.parametrize("size", [(32, 32), (64, 48)])
def test_attention_of_every_size_is_the_extracted_models(size, family):
    model = elastic(family)
    pixels = images(model, size=size)
    grid = size[0] // 8, size[1] // 8
    for sub_network in (None, "64x3", "48x2", model.config.space.smallest):
        maps = attention_maps(model, pixels, sub_network)
        stock = model.extract(sub_network)
        expected = eager_attention(stock, pixels)[:, :, 0, model.config.num_prefix_tokens :]
        assert maps.shape == (2, stock.config.num_attention_heads, *grid) and maps.dtype == torch.float32
        torch.testing.assert_close(maps.flatten(2), expected, rtol=1e-5, atol=1e-7)
        assert torch.equal(attention_maps(stock, pixels), maps)
        assert maps.std() > 0.01 / maps[0, 0].numel()


@pytest.mark.parametrize("size", [32, 48])
def test_attention_of_stock_models(size):
    dinov2 = {key: value for key, value in TINY_VIT.items() if key != "intermediate_size"}
    for model, others in (
        (ViTModel(ViTConfig(**TINY_VIT), add_pooling_layer=False), 1),
        (Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**dinov2, num_register_tokens=3)), 4),
        (DINOv3ViTModel(DINOv3ViTConfig(**TINY_VIT, num_register_tokens=2)), 3),  # rotates queries and keys
    ):
        strengthen(model)
        pixels = images(model, size=(size, size))
        options = {"interpolate_pos_encoding": True} if size != 32 and isinstance(model, ViTModel) else {}
        expected = eager_attention(model, pixels, **options)[:, :, 0, others:]
        maps = attention_maps(model, pixels)
        assert maps.shape == (2, 4, size // 8, size // 8)
        torch.testing.assert_close(maps.flatten(2), expected, rtol=1e-5, atol=1e-7)
        hidden = model(pixels, **options).last_hidden_state[:, others:]
        torch.testing.assert_close(patch_features(model, pixels).flatten(1, 2), hidden, rtol=1e-5, atol=1e-5)


def test_a_model_with_a_head_has_attention_but_no_features():
    config = Dinov2Config(**{key: value for key, value in TINY_VIT.items() if key != "intermediate_size"})
    model = Dinov2ForImageClassification(config)
    pixels = images(model)
    assert torch.equal(attention_maps(model, pixels), attention_maps(model.dinov2, pixels))
    with pytest.raises(ValueError, match="Dinov2ForImageClassification has no last_hidden_state: pass the base model"):
        patch_features(model, pixels)


def test_attention_is_refused_where_it_means_something_else():
    for family, why in (("swin", "attends within windows and has no class"), ("resnet", "no attention")):
        model = elastic(family)
        for candidate in (model, model.extract(model.config.space.smallest)):
            with pytest.raises(ValueError, match=f"{type(candidate).__name__} .*{why}.*: use patch_pca on its patch_f"):
                attention_maps(candidate, images(model))
    model = SiglipVisionModel(SiglipVisionConfig(**TINY_VIT))
    with pytest.raises(ValueError, match="no class token before its patches: use patch_pca"):
        attention_maps(model, images(model))
    vit = elastic("vit")
    for function in (attention_maps, patch_features):
        with pytest.raises(ValueError, match="outside|not|64x99"):
            function(vit, images(vit), "64x99")
        with pytest.raises(ValueError, match="Dinov2Model has one size: leave out sub_network, here 64x3"):
            function(vit.extract(), images(vit), "64x3")
        with pytest.raises(ValueError, match=r"PoaForPreTraining holds two backbones: pass its teacher"):
            function(tiny("vit"), images(vit))
        with pytest.raises(ValueError, match=r"shape \(3, 32, 32\): give images of one size"):
            function(vit, images(vit)[0])


@pytest.mark.parametrize("family", PUBLISHED)
@torch.no_grad()
def test_features_lie_where_their_patches_are(family):
    model = elastic(family)
    side = model.config.image_size
    step = {"swin": 16, "resnet": 32}.get(family, 8)
    for size in ((side, side), (2 * side, side), (2 * side, 2 * side)):
        pixels = images(model, size=size)
        for sub_network in (None, model.config.space.smallest):
            features = patch_features(model, pixels, sub_network)
            hidden = model(pixels, sub_network=sub_network).last_hidden_state
            assert features.shape[:3] == (2, size[0] // step, size[1] // step)
            if family == "resnet":
                assert torch.equal(features.permute(0, 3, 1, 2), hidden)
            else:
                assert torch.equal(features.flatten(1, 2), hidden[:, model.config.num_prefix_tokens :])
            if family != "swin" or size == (side, side):  # stock Swin's windows are others on other maps
                extracted = model.extract(sub_network)
                assert torch.equal(patch_features(extracted, pixels), features)
            assert not features.is_inference() and features.dtype == torch.float32


def features_with_structure(count: int = 3, side: int = 6, width: int = 20, seed: int = 0) -> torch.Tensor:
    """Components of clearly different strength, which are skewed."""
    rng = np.random.default_rng(seed)
    scores = rng.gamma(1.0, 1.0, (count, side, side, width)) * 0.6 ** np.arange(width)
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return torch.tensor(scores @ turn + rng.normal(size=width), dtype=torch.float32)


@pytest.mark.parametrize("width", [20, 150])  # fewer and more than the 108 patches
def test_pca_is_that_of_a_singular_value_decomposition(width):
    features = features_with_structure(width=width)
    points = features.double().numpy().reshape(-1, width)
    points = points - points.mean(axis=0)
    scores = points @ np.linalg.svd(points, full_matrices=False)[2][:3].T
    scores *= np.where((scores**3).sum(axis=0) < 0, -1, 1)
    low, high = np.percentile(scores, [2, 95], axis=0)
    expected = np.clip((scores - low) / (high - low), 0, 1).reshape(3, 6, 6, 3)
    colours = patch_pca(features, percentiles=(2, 95))
    assert colours.dtype == torch.float32 and colours.min() == 0 and colours.max() == 1
    np.testing.assert_allclose(colours.numpy(), expected, atol=1e-5)


def test_pca_does_not_depend_on_the_features_axes():
    features = features_with_structure()
    turn = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))[0]
    turned = (7 * (features.double() @ turn) - 3).float()
    torch.testing.assert_close(patch_pca(turned), patch_pca(features), rtol=0, atol=1e-4)
    torch.testing.assert_close(patch_pca(features.flip(2)), patch_pca(features).flip(2), rtol=0, atol=1e-4)


def test_foreground_patches_alone_make_the_components():
    features, foreground = features_with_structure(), torch.rand(3, 6, 6) < 0.6
    colours = patch_pca(features, foreground)
    assert (colours[~foreground] == 0).all()
    alone = patch_pca(features[foreground][None, None])
    torch.testing.assert_close(colours[foreground], alone[0, 0], rtol=0, atol=1e-5)


def test_foreground_is_found_by_place():
    """An object in the middle of each image, whichever way its features point."""
    features = 0.1 * torch.randn(4, 8, 8, 16)
    expected = torch.zeros(4, 8, 8, dtype=torch.bool)
    for image in range(4):
        expected[image, 1 + image % 2 : 6, 2:5] = True
    direction = torch.randn(16)
    for sign in (1, -1):
        found = patch_foreground(features + sign * expected[..., None] * direction)
        assert torch.equal(found, expected)
        assert torch.equal(found, patch_foreground(features + sign * expected[..., None] * direction, 0.5))


def test_colours_follow_the_reference():
    reference = features_with_structure()
    colours = patch_pca(reference)
    assert (patch_pca(reference, reference=reference) - colours).abs().max() < 1e-5
    # another model: the same components in another order of strength, mirrored, in other axes and with noise
    points = reference.double().flatten(0, 2)
    scores = (points - points.mean(0)) @ torch.linalg.svd(points - points.mean(0), full_matrices=False)[2][:3].T
    scores = scores / scores.std(0) * torch.tensor([-1.0, 3.0, -2.0])
    other = (scores @ torch.randn(3, 50, dtype=torch.float64).svd()[2].T).reshape(3, 6, 6, 50).float()
    other += 0.01 * torch.randn_like(other)
    assert (patch_pca(other) - colours).abs().mean() > 0.1
    matched = patch_pca(other, reference=reference)
    assert (matched - colours).abs().mean() < 0.01
    foreground = torch.rand(3, 6, 6) < 0.7
    assert (patch_pca(other, foreground, reference=reference)[~foreground] == 0).all()
    # twice as fine a grid
    fine = reference.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert (patch_pca(other, reference=fine) - colours).abs().mean() < 0.01
    assert patch_pca(fine, foreground.repeat_interleave(2, 1).repeat_interleave(2, 2), other).shape == (3, 12, 12, 3)


def test_pca_where_there_is_little_to_see():
    assert (patch_pca(torch.ones(1, 4, 4, 8)) == 0.5).all()
    one = torch.zeros(1, 4, 4, 8)
    one[0, :, 2:, 3] = 1  # a single component, and no noise made large
    colours = patch_pca(one + 5)
    assert set(colours[..., 0].unique().tolist()) == {0, 1} and (colours[..., 1:] == 0.5).all()
    with pytest.raises(ValueError, match="There are 2 patches to look at: give larger images, or more foreground"):
        patch_pca(torch.randn(1, 1, 2, 8))
    with pytest.raises(ValueError, match="2 images and a reference with 1: give features of the same ones"):
        patch_pca(torch.randn(2, 4, 4, 8), reference=torch.randn(1, 4, 4, 8))
    with pytest.raises(ValueError, match=r"shape \(4, 4, 8\), .* give \(B, h, w, D\)"):
        patch_pca(torch.randn(4, 4, 8))


def nearest(patch, grid, allowed):
    places = [place for place in np.ndindex(*grid.shape[:2]) if allowed[place]]
    return max(places, key=lambda place: cosine_similarity(patch, grid[place], dim=0).item())


@pytest.mark.parametrize("masked", [False, True])
def test_correspondence_is_that_of_loops(masked):
    a, b = torch.randn(4, 3, 5), torch.randn(2, 6, 5)
    allowed = [torch.rand(a.shape[:2]) < 0.6, torch.rand(b.shape[:2]) < 0.6] if masked else [None, None]
    masks = [torch.ones(grid.shape[:2]) if mask is None else mask for grid, mask in zip((a, b), allowed, strict=True)]
    expected = {}
    for place in np.ndindex(4, 3):
        if masks[0][place]:
            other = nearest(a[place], b, masks[1])
            if nearest(b[other], a, masks[0]) == place:
                expected[place, other] = cosine_similarity(a[place], b[other], dim=0).item()
    found = patch_correspondence(a, b, None, *allowed)
    pairs = [(tuple(p), tuple(q)) for p, q in zip(found.patches_a.tolist(), found.patches_b.tolist(), strict=True)]
    assert 1 < len(expected) and dict(zip(pairs, found.similarity.tolist(), strict=True)) == pytest.approx(expected)
    assert (found.similarity.diff() <= 0).all() and (found.grid_a, found.grid_b) == ((4, 3), (2, 6))
    best = patch_correspondence(a, b, 2, *allowed)
    assert torch.equal(best.patches_a, found.patches_a[:2]) and torch.equal(best.patches_b, found.patches_b[:2])


def test_correspondence_of_a_shifted_image():
    image = torch.randn(6, 9, 12)
    found = patch_correspondence(image[:, :6], image[:, 2:])
    assert len(found.similarity) >= 24 and (found.similarity[:24] > 0.9999).all()
    moved = found.patches_a[:24] - found.patches_b[:24]
    assert (moved == torch.tensor([0, 2])).all()
    for a, b in ((image[None], image), (image, image[..., :5])):
        with pytest.raises(ValueError, match="cannot be matched: give .* of one image each, by the same model"):
            patch_correspondence(a, b)
    with pytest.raises(ValueError, match="no patches to match"):
        patch_correspondence(image, image, foreground_b=torch.zeros(6, 9, dtype=torch.bool))
