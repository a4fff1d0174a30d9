import pytest

from poa_hf import (
    PoaDinov2RegistersConfig,
    PoaDinov3ViTConfig,
    PoaResNetConfig,
    PoaSwinConfig,
    PoaViTConfig,
    SubNetwork,
)
from poa_hf.publishing.hub.names import collection_title, repo_ids, repo_name, supernet_name

VIT, SWIN, RESNET = PoaViTConfig(), PoaSwinConfig(), PoaResNetConfig()


@pytest.mark.parametrize(
    ("config", "size", "name"),
    [
        (VIT, "small", "poa-vit-s-extracted"),
        (VIT, "768x12", "poa-vit-b-extracted"),
        (VIT, "large", "poa-vit-l-extracted"),
        (VIT, "448x14", "poa-vit-w448-d14-extracted"),
        (SWIN, "tiny", "poa-swin-t-extracted"),
        (SWIN, "small", "poa-swin-s-extracted"),
        (SWIN, "base", "poa-swin-b-extracted"),
        (SWIN, "112x2-2-12-2", "poa-swin-w112-d2-2-12-2-extracted"),
        (RESNET, "50", "poa-resnet-50-extracted"),
        (RESNET, "101", "poa-resnet-101-extracted"),
        (RESNET, "96x3-4-6-3", "poa-resnet-w96-d3-4-6-3-extracted"),
    ],
)
def test_names_of_sizes(config, size, name):
    assert repo_name(config, config.space.resolve(size)) == name


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (  # smaller than ViT-S
            PoaViTConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, min_hidden_size=32),
            {"small": "poa-vit-w32-d2-extracted", "large": "poa-vit-w64-d3-extracted"},
        ),
        (  # up to ViT-B, whose "large" is no ViT-L
            PoaViTConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, min_hidden_size=384),
            {"small": "poa-vit-w384-d6-extracted", "large": "poa-vit-w768-d12-extracted"},
        ),
        (  # from half of ViT-S
            PoaViTConfig(min_hidden_size=192),
            {"small": "poa-vit-w192-d12-extracted", "large": "poa-vit-w1024-d24-extracted"},
        ),
        (
            PoaDinov3ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, min_hidden_size=192),
            {"large": "poa-dinov3-vit-w384-d12-extracted"},
        ),
        (
            PoaSwinConfig(embed_dim=32, depths=[2, 2, 2, 2], min_embed_dim=16),
            {"tiny": "poa-swin-w16-d1-2-2-2-extracted", "base": "poa-swin-w32-d2-2-2-2-extracted"},
        ),
        (
            PoaResNetConfig(depths=[1, 2, 1, 1], min_depths=[1, 1, 1, 1], base_width=64, min_base_width=32),
            {"14": "poa-resnet-w32-d1-1-1-1-extracted"},
        ),
        (PoaResNetConfig(hidden_sizes=[128, 256, 512, 1024]), {"50": "poa-resnet-w64-d3-4-6-3-extracted"}),
        # another patch, step or resolution makes no other size
        (PoaViTConfig(patch_size=14, image_size=518), {"small": "poa-vit-s-extracted"}),
        (PoaViTConfig(hidden_size_step=128, num_hidden_layers_step=2), {"base": "poa-vit-b-extracted"}),
        (PoaDinov2RegistersConfig(), {"large": "poa-dinov2-with-registers-l-extracted"}),
    ],
)
def test_sizes_have_names_in_published_spaces_only(config, names):
    assert {name: repo_name(config, config.space.resolve(name)) for name in names} == names
    if "large" in names:
        assert supernet_name(config) == names["large"].replace("extracted", "supernet")


def test_names_of_supernets():
    assert supernet_name(VIT) == "poa-vit-l-supernet"
    assert supernet_name(SWIN) == "poa-swin-b-supernet"
    assert supernet_name(RESNET) == "poa-resnet-w128-d3-8-36-3-supernet"  # its full size has no name
    assert supernet_name(VIT, "photos-{width}-{depth}") == "photos-1024-24-supernet"


@pytest.mark.parametrize("config", [VIT, SWIN, RESNET])
def test_every_size_has_a_name_of_its_own(config):
    supernet, ids = repo_ids(config, config.space, "me")
    assert len({supernet, *ids.values()}) == len(config.space) + 1
    _, ids = repo_ids(config, config.space, "me", "{family}.w{width}.d{depth}")
    assert ids[config.space.full].startswith(f"me/{config.model_type[4:]}.w{config.space.full.width}.d")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("poa-{family}", "the same name"),
        ("poa-{depth}", "gives 384x12 and 768x12 the same name, me/poa-12"),
        ("poa-{height}", "has no field {height}: use {family}, {size}, {width}, {depth}"),
        ("poa-{", "is not a template"),
        ("poa-{size.real}", "has no field"),
        ("a--{size}", "cannot be the name of a repo"),
        ("me/{size}", "cannot be the name of a repo"),
        ("café-{size}", "cannot be the name of a repo"),
        ("x" * 95 + "{size}", "cannot be the name of a repo"),
    ],
)
def test_bad_templates_are_refused(template, message):
    with pytest.raises(ValueError, match=r"\.$") as error:
        repo_ids(VIT, [SubNetwork(384, 12), SubNetwork(768, 12)], "me", template)
    assert message in str(error.value)


@pytest.mark.parametrize("namespace", ["", "me/you", "-me", "a b"])
def test_bad_namespaces_are_refused(namespace):
    with pytest.raises(ValueError, match="cannot be the name of a repo"):
        repo_ids(VIT, [SubNetwork(384, 12)], namespace)


def test_the_title_of_a_collection_fits():
    assert collection_title(VIT, "me/poa-vit-l-supernet")[0] == "poa-vit-l: one pre-training, all sizes"
    assert collection_title(SWIN, None)[0] == "poa-swin-b: one pre-training, all sizes"
    for supernet in (f"me/{'x' * 80}-supernet", f"me/{'x' * 30}-supernet", None):
        title, description = collection_title(RESNET, supernet)
        assert len(title) <= 60 and len(description) <= 150
