import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, Dinov2Config

from poa_hf import PoaConfig, PoaDinov3ViTConfig, PoaResNetConfig, PoaSwinConfig, PoaViTConfig, SubNetwork
from poa_hf.models.elastic_config import elastic_config, image_shape
from poa_hf.selection.costs import costs, count_costs

from ..conftest import slow_but


def tiny_backbone(**overrides) -> PoaViTConfig:
    fields = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, min_hidden_size=16, image_size=32)
    return PoaViTConfig(**{**fields, "min_num_hidden_layers": 1, "patch_size": 8, **overrides})


TINY = {
    "vit": lambda: tiny_backbone(num_hidden_layers=5),
    "vit, SwiGLU, steps of 2": lambda: tiny_backbone(
        num_hidden_layers=5, num_hidden_layers_step=2, use_swiglu_ffn=True, hidden_size_step=16,
    ),
    "dinov3, gated": lambda: PoaDinov3ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=24, patch_size=8, use_gated_mlp=True,
    ),
    "swin": lambda: PoaSwinConfig(
        image_size=32, patch_size=2, window_size=4, embed_dim=16, num_heads=[2, 4], depths=[1, 5], min_embed_dim=8,
    ),
    "swin, two elastic stages": lambda: PoaSwinConfig(
        image_size=24, patch_size=2, window_size=4, embed_dim=8, num_heads=[1, 2], depths=[3, 4], min_depths=[2, 2],
    ),
    "resnet": lambda: PoaResNetConfig(
        image_size=32, embedding_size=16, hidden_sizes=[32, 64, 96], depths=[1, 3, 4], min_depths=[1, 2, 2],
        base_width=16, num_groups=8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", slow_but(TINY, "vit", "swin", "resnet"))
def test_every_size_costs_what_is_counted_on_its_own_model(family):
    config = TINY[family]()
    table = costs(config)
    assert list(table) == list(config.space) and len(table) >= 4
    for size, size_costs in table.items():
        assert size_costs == count_costs(config, size)


@pytest.mark.parametrize("family", slow_but(TINY, "vit", "swin", "resnet", "dinov3, gated"))
def test_counts_are_those_of_a_real_training_step(family):
    config = TINY[family]()
    torch.manual_seed(0)
    elastic = AutoModel.from_config(config)
    for size in (config.space.smallest, config.space.full):
        model = elastic.extract(size)
        assert model.num_parameters() == count_costs(config, size).parameters
        images = torch.rand(1, *image_shape(config))
        assert kept_bytes(model, images) == count_costs(config, size).activation_bytes
        model.set_attn_implementation("eager") if family != "resnet" else None
        with FlopCounterMode(display=False) as counter:
            model(images)
        assert counter.get_total_flops() == 2 * count_costs(config, size).flops


def kept_bytes(model: torch.nn.Module, images: torch.Tensor) -> int:
    """Found by address, which only real tensors have."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(images)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


# Parameters in millions without classifier, and multiply-adds in billions (tables of arXiv 2010.11929 / 2012.12877,
# 2103.14030 and timm's of ResNets; ours have twice Swin's heads and GroupNorm's as many parameters as BatchNorm's)
PUBLISHED = {
    PoaViTConfig: (143, {"384x12": (22, 4.6), "768x12": (86, 17.6), "1024x24": (304, 61.6)}),
    PoaSwinConfig: (39, {"96x2-2-6-2": (27.5, 4.5), "96x2-2-18-2": (48.8, 8.7), "128x2-2-18-2": (86.7, 15.4)}),
    PoaResNetConfig: (465, {"64x3-4-6-3": (23.5, 4.1), "64x3-4-23-3": (42.5, 7.8), "64x3-8-36-3": (58.1, 11.5)}),
}


@pytest.mark.parametrize("config_class", slow_but(PUBLISHED, PoaViTConfig))
def test_published_sizes_cost_what_is_published(config_class):
    config = config_class()
    count, published = PUBLISHED[config_class]
    table = costs(config)
    assert len(table) == count
    for size, (parameters, flops) in published.items():
        of = table[SubNetwork.parse(size)]
        assert of.parameters == pytest.approx(parameters * 1e6, rel=0.015 if size == "384x12" else 0.01)
        assert of.flops == pytest.approx(flops * 1e9, rel=0.01)
    for size in (config.space.smallest, config.space.full):
        assert table[size] == count_costs(config, size)
    assert max(table.values(), key=lambda of: of.flops) == table[config.space.full]


def test_costs_are_found_through_whatever_has_an_elastic_configuration():
    backbone = tiny_backbone()
    expected = costs(backbone)
    with torch.no_grad():
        assert costs(PoaConfig(backbone_config=backbone)) == expected
        assert costs(AutoModel.from_config(backbone)) == expected
    assert count_costs(backbone, backbone.space.smallest) == expected[backbone.space.smallest]
    assert elastic_config(backbone) is backbone
    with pytest.raises(ValueError, match="'dinov2' has one size only: give an elastic configuration"):
        costs(Dinov2Config())


def test_counting_leaves_no_trace():
    before = torch.get_default_device(), torch.is_grad_enabled(), torch.random.get_rng_state().sum().item()
    costs(tiny_backbone())
    assert (torch.get_default_device(), torch.is_grad_enabled(), torch.random.get_rng_state().sum().item()) == before
