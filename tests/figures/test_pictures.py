import copy
import importlib
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
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
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from poa_hf.figures import images as plots
from poa_hf.figures.patches import (
    attention_maps,
    patch_correspondence,
    patch_features,
    patch_foreground,
    patch_pca,
)

from ..test_contract import TINY, backbone, plain_attributes, tiny

TINY_VIT = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, intermediate_size=64
)


def elastic(family: str):
    """With weights large enough that patches differ, and that attention is not even."""
    fields = TINY[family] | ({"layerscale_value": 1.0} if family == "vit" else {})
    model = tiny(family).student.__class__(backbone(family, fields))
    return strengthen(model)


@torch.no_grad()
def strengthen(model):
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def images(model, count: int = 2, size: tuple[int, int] | None = None) -> torch.Tensor:
    side = model.config.image_size
    return torch.randn(count, 3, *(size or (side, side)))


# -- attention


@torch.no_grad()
def eager_attention(model, pixels, **options) -> torch.Tensor:
    model = copy.deepcopy(model).eval()
    model.set_attn_implementation("eager")
    return model(pixels, output_attentions=True, **options).attentions[-1]


@pytest.mark.parametrize("size", [(32, 32), (64, 48)])
def test_attention_of_every_size_is_the_extracted_models(size):
    model = elastic("vit")
    pixels = images(model, size=size)
    grid = size[0] // 8, size[1] // 8
    for sub_network in (None, "64x3", "48x2", model.config.space.smallest):
        maps = attention_maps(model, pixels, sub_network)
        stock = model.extract(sub_network)
        expected = eager_attention(stock, pixels)[:, :, 0, 1:]
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


# -- features


@torch.no_grad()
def test_features_lie_where_their_patches_are(family):
    model = elastic(family)
    side = model.config.image_size
    step = {"vit": 8, "swin": 16, "resnet": 32}[family]
    for size in ((side, side), (2 * side, side), (2 * side, 2 * side)):
        pixels = images(model, size=size)
        for sub_network in (None, model.config.space.smallest):
            features = patch_features(model, pixels, sub_network)
            hidden = model(pixels, sub_network=sub_network).last_hidden_state
            assert features.shape[:3] == (2, size[0] // step, size[1] // step)
            if family == "resnet":
                assert torch.equal(features.permute(0, 3, 1, 2), hidden)
            else:
                assert torch.equal(features.flatten(1, 2), hidden[:, 1:] if family == "vit" else hidden)
            if family != "swin" or size == (side, side):  # stock Swin's windows are others on other maps
                extracted = model.extract(sub_network)
                assert torch.equal(patch_features(extracted, pixels), features)
            assert not features.is_inference() and features.dtype == torch.float32


def test_features_of_sides_that_patches_do_not_divide():
    """ViT leaves the rest out; Swin pads at every merging."""
    swin, vit = elastic("swin"), elastic("vit")
    assert patch_features(swin, images(swin, size=(70, 64))).shape[1:3] == (5, 4)
    assert patch_features(vit, images(vit, size=(39, 32))).shape[1:3] == (4, 4)


def test_stock_swin_keeps_its_windows():
    config = SwinConfig(embed_dim=8, depths=[2, 2], num_heads=[2, 4], image_size=32, patch_size=2, window_size=4)
    model = strengthen(SwinModel(config))
    before = plain_attributes(model)
    large, small = images(model, size=(64, 64)), images(model, size=(16, 16))
    first = patch_features(model, large)
    patch_features(model, small)
    assert plain_attributes(model) == before
    assert torch.equal(patch_features(model, large), first)
    with pytest.raises(ValueError, match="12 x 16 pixels are too small for the windows of SwinModel: .* least 16 pix"):
        patch_features(model, images(model, size=(12, 16)))


@pytest.mark.parametrize("stock", [False, True])
def test_no_trace_is_left(family, stock):
    model = elastic(family)
    smallest = model.config.space.smallest
    sizes = [None] if stock else [None, smallest]
    model = model.extract(smallest) if stock else model
    model.train()
    next(model.children()).eval()  # a frozen part
    modes = [module.training for module in model.modules()]
    attributes, config = plain_attributes(model), model.config.to_dict()
    configs = {name: id(vars(module).get("config")) for name, module in model.named_modules()}
    pixels, random = images(model, 4), torch.get_rng_state()
    for sub_network in sizes:
        patch_pca(patch_features(model, pixels, sub_network))
        if family == "vit":
            attention_maps(model, pixels, sub_network)
        else:
            with pytest.raises(ValueError):
                attention_maps(model, pixels, sub_network)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert plain_attributes(model) == attributes and model.config.to_dict() == config
    assert {name: id(vars(module).get("config")) for name, module in model.named_modules()} == configs
    kept = [plain for plain, _ in vars(model).get("_plain_models", {}).values()]
    for module in [module for each in (model, *kept) for module in each.modules()]:
        assert not module._forward_hooks and not module._forward_pre_hooks
        if hasattr(module, "config"):
            assert module.config._attn_implementation == model.config._attn_implementation
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


# -- components


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


# -- correspondence


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


# -- figures


def saved(figure, path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that does not fit warns
        figure.savefig(path, dpi=60)
    picture = np.asarray(Image.open(path).convert("RGBA"))
    assert picture[..., 3].max() == 255 and (picture[..., 3] == 0).mean() > 0.005  # drawn on nothing
    return picture


def test_figures_of_three_sizes(tmp_path):
    model = elastic("vit")
    pixels = images(model, 3)
    sizes = [str(model.config.space.smallest), "64x2", "64x3"]
    features = {size: patch_features(model, pixels, size) for size in sizes}
    maps = {size: attention_maps(model, pixels, size) for size in sizes}
    attention = plots.attention_figure(pixels, maps)
    colours = {size: patch_pca(features[size], reference=features["64x3"]) for size in sizes}
    pca = plots.pca_figure(pixels, colours)
    for figure, name in ((attention, "attention"), (pca, "pca")):
        assert len(figure.axes) == 3 * 4
        assert [axes.get_title() for axes in figure.axes[:4]] == ["image", *sizes]
        saved(figure, tmp_path / f"{name}.png")
    shown = attention.axes[2].images[0].get_array()
    np.testing.assert_allclose(shown, maps["64x2"][0].mean(0))
    np.testing.assert_allclose(pca.axes[7].images[0].get_array(), colours["64x3"][1])
    mean, std = (np.array(v) for v in ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3]))
    own = plots.pca_figure(pixels, colours, list(mean), list(std)).axes[4].images[0].get_array()
    np.testing.assert_allclose(own, np.clip(pixels[1].permute(1, 2, 0).numpy() * std + mean, 0, 1), atol=1e-6)


def crops(num_images: int = 3, num_local: int = 5) -> dict:
    masks = torch.zeros(2 * num_images, 16, dtype=torch.bool)
    masks[num_images, [1, 4]] = True  # the second view of the first image
    return {
        "global_crops": torch.rand(2 * num_images, 3, 32, 32),
        "local_crops": torch.rand(num_local * num_images, 3, 16, 16),
        "masks": masks,
    }


def test_crops_and_masks_are_where_they_belong(tmp_path):
    batch = crops()
    figure = plots.crops_figure(batch, 2, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    canvas = figure.axes[0].images[0].get_array()
    saved(figure, tmp_path / "crops.png")

    def shown(top, left, side):
        assert (canvas[top : top + side, left : left + side, 3] == 1).all()
        return canvas[top : top + side, left : left + side, :3].transpose(2, 0, 1)

    step, local_step, row = 32 + 2, 16 + 2, 2 * (16 + 2)  # local crops in two lines, a little higher than a global one
    for image in range(2):
        for view in range(2):
            expected = batch["global_crops"][3 * view + image]
            np.testing.assert_allclose(shown(row * image, step * view, 32), expected, atol=1e-6)
        for view in range(5):
            column, line = divmod(view, 2)
            place = row * image + local_step * line, 2 * step + local_step * column
            np.testing.assert_allclose(shown(*place, 16), batch["local_crops"][3 * view + image], atol=1e-6)
    squares = [path.get_extents().bounds for path in figure.axes[0].collections[0].get_paths()]
    assert squares == [(step + 8, 0, 8, 8), (step, 8, 8, 8)]


def test_crops_of_a_loaders_batch_are_coloured_as_in_training(tmp_path):
    from poa_hf.data.augmentation import augment
    from poa_hf.data.crops import CropArguments
    from poa_hf.data.loader import PretrainingLoader
    from poa_hf.data.textures import TextureDataset

    args = CropArguments(global_crop_size=32, local_crop_size=16, num_local_crops=2)
    batch = next(iter(PretrainingLoader(TextureDataset(seed=1), args, batch_size=3, mask_grid=(4, 4))))
    canvas = plots.crops_figure(batch).axes[0].images[0].get_array()
    expected = augment(batch["global_crops"], batch["global_augmentation"], (0, 0, 0), (1, 1, 1))[4]
    np.testing.assert_allclose(canvas[36:68, 34:66, :3].transpose(2, 0, 1), expected.clamp(0, 1), atol=0.003)
    for missing in ({"masks"}, {"local_crops"}, {"masks", "local_crops"}):
        part = {name: value for name, value in batch.items() if name not in missing}
        figure = plots.crops_figure(part, 1)
        assert len(figure.axes[0].texts) == 2 + ("local_crops" not in missing)
        saved(figure, tmp_path / "part.png")


def test_figures_refuse_what_does_not_fit(monkeypatch):
    batch = crops()
    with pytest.raises(ValueError, match="6 global and 14 local crops are no batch: give two"):
        plots.crops_figure(batch | {"local_crops": batch["local_crops"][1:]})
    with pytest.raises(ValueError, match="0 global and 15 local crops are no batch"):
        plots.crops_figure({"local_crops": batch["local_crops"]})
    with pytest.raises(ValueError, match=r"masks have shape \(6, 15\), which does not cover 6 crops of 32 x 32"):
        plots.crops_figure(batch | {"masks": batch["masks"][:, 1:]})
    pixels = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"small has shape \(3, 4, 2, 2\) for 2 images: give maps"):
        plots.attention_figure(pixels, {"small": torch.rand(3, 4, 2, 2)})
    with pytest.raises(ValueError, match=r"nothing to draw: give colours \(B, h, w, 3\) by name"):
        plots.pca_figure(pixels, {})
    with pytest.raises(ValueError, match=r"Images have shape \(2, 8, 8\): give"):
        plots.attention_figure(pixels[:, 0], {"small": torch.rand(2, 4, 2, 2)})

    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    without = importlib.reload(plots)  # which needs no matplotlib
    for figure in (
        lambda: without.attention_figure(pixels, {"small": torch.rand(2, 4, 2, 2)}),
        lambda: without.crops_figure(crops()),
    ):
        with pytest.raises(ValueError, match=r"Figures need matplotlib: install poa_hf\[plots\]\."):
            figure()
