import pytest
import torch
from transformers import (
    SwinConfig,
    SwinModel,
)

from poa_hf.figures.patches import (
    attention_maps,
    patch_features,
    patch_pca,
)

from ..test_contract import plain_attributes
from .models import elastic, images, strengthen


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
