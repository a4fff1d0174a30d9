import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification

from poa_hf import (
    GnResNetBackbone,
    GnResNetForImageClassification,
    GnResNetModel,
    PoaResNetConfig,
    PoaResNetModel,
    SubNetwork,
)

from ..conftest import run_python

TINY = dict(
    embedding_size=8, hidden_sizes=[32, 64, 128, 256], base_width=16, num_groups=4, depths=[1, 2, 3, 1],
    min_depths=[1, 1, 1, 1], image_size=64,
)  # fmt: skip
SIZE = SubNetwork(8, (1, 1, 2, 1))


def tiny_resnet(**overrides) -> PoaResNetModel:
    model = PoaResNetModel(PoaResNetConfig(**TINY | overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def test_full_size_is_the_plain_resnet():
    model = tiny_resnet()
    plain = GnResNetModel(model.config.stock_config(model.config.space.full)).eval()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if n != "mask_token"})
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(pixels).last_hidden_state, plain(pixels).last_hidden_state)


@torch.no_grad()
def test_only_middle_channels_are_cut():
    model = tiny_resnet()
    full, small = dict(model.named_parameters()), dict(model.extract(SIZE).named_parameters())
    first, second = "encoder.stages.2.layers.0", "encoder.stages.2.layers.2"  # kept of three: the first and the last
    assert torch.equal(small[f"{first}.layer.0.convolution.weight"], full[f"{first}.layer.0.convolution.weight"][:32])
    middle = full[f"{second}.layer.1.convolution.weight"][:32, :32] * 2
    assert torch.equal(small["encoder.stages.2.layers.1.layer.1.convolution.weight"], middle)
    last = full[f"{second}.layer.2.convolution.weight"][:, :32] * 2
    assert torch.equal(small["encoder.stages.2.layers.1.layer.2.convolution.weight"], last)
    assert torch.equal(
        small["encoder.stages.2.layers.1.layer.1.normalization.weight"],
        full[f"{second}.layer.1.normalization.weight"][:32],
    )
    for name in ("embedder.embedder.convolution.weight", f"{first}.shortcut.convolution.weight"):
        assert torch.equal(small[name], full[name])
    assert all(name in small for name in full if "shortcut" in name) and "mask_token" not in small


@torch.no_grad()
def test_masked_squares_hold_the_mask_token():
    model = tiny_resnet()
    pixels, masks = torch.randn(2, 3, 64, 64), torch.zeros(2, 4, 4, dtype=torch.bool)
    masks[0, 1, 2] = True
    seen = []
    model.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(pixels)
    model(pixels, bool_masked_pos=masks.flatten(1))
    plain, hidden = seen
    expected = plain.clone()  # a quarter of the pixels' resolution: 4 x 4 positions a square
    expected[0, :, 4:8, 8:12] = model.mask_token[0]
    assert torch.equal(hidden, expected)


LOAD = """
import sys, torch
assert not any("poa_hf" in path for path in sys.path)
from transformers import AutoImageProcessor, AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert "poa_hf" not in sys.modules and type(model).__name__ == "GnResNetModel"
AutoImageProcessor.from_pretrained(sys.argv[1])
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[2])).pooler_output, sys.argv[2] + ".out")
"""


@pytest.mark.slow
@torch.no_grad()
def test_what_loads_an_extracted_resnet(tmp_path):
    from poa_hf import PoaConfig, PoaForPreTraining
    from poa_hf.publishing.export import extract_to

    heads = dict(head_hidden_size=24, head_bottleneck_size=8, num_prototypes=[12])
    model = PoaForPreTraining(PoaConfig(backbone_config=PoaResNetConfig(**TINY), **heads)).eval()
    extract_to(model, SIZE, tmp_path / "model")
    pixels = torch.randn(1, 3, 64, 64)
    expected = model.teacher(pixels, sub_network=SIZE).pooler_output
    torch.save(pixels, tmp_path / "pixels")
    run_python("-I", "-c", LOAD, str(tmp_path / "model"), str(tmp_path / "pixels"))
    assert torch.equal(torch.load(tmp_path / "pixels.out"), expected)
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "model")(pixels).pooler_output, expected)
    classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "model", num_labels=3)
    assert type(classifier) is GnResNetForImageClassification
    assert torch.equal(classifier.resnet(pixels).pooler_output, expected)
    backbone = GnResNetBackbone.from_pretrained(tmp_path / "model", out_features=["stage2", "stage4"])
    assert [tuple(maps.shape) for maps in backbone(pixels).feature_maps] == [(1, 64, 8, 8), (1, 256, 2, 2)]


@torch.no_grad()
def test_outputs():
    model = tiny_resnet()
    pixels = torch.randn(1, 3, 64, 96)
    for size in (None, SIZE):
        output = model(pixels, sub_network=size, output_hidden_states=True)
        assert [tuple(state.shape[1:]) for state in output.hidden_states] == [
            *((8, 16, 24), (32, 16, 24), (64, 8, 12), (128, 4, 6), (256, 2, 3))
        ]
        torch.testing.assert_close(output.pooler_output, output.last_hidden_state.mean((2, 3)))
        assert isinstance(model(pixels, sub_network=size, return_dict=False), tuple)
        assert model.image_tokens(output)[1].shape == (1, 4 * 6, 256)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base_width": 18}, "base_width 18 .* groups do not divide"),
        ({"min_base_width": 10}, "min_base_width 10 is not a positive multiple of 4"),
        ({"min_base_width": 32}, "min_base_width 32 is larger than base_width 16"),
        ({"base_width_step": 6}, "base_width_step 6 is not a positive multiple of 4"),
        ({"base_width_step": 12, "min_base_width": 8}, "Steps of 12 .base_width_step. do not lead"),
        ({"min_depths": [1, 1, 1]}, "must have as many stages as depths"),
        ({"min_depths": [1, 3, 1, 1]}, "min_depths of stage 2 is 3: it must lie between 1 and depths' 2"),
        ({"depths": [1, 2, 3]}, "hidden_sizes has 4 stages and depths 3"),
        ({"depths": [1], "hidden_sizes": [32], "min_depths": [1]}, "has one stage"),
        ({"sampling_bias": 0.5}, "sampling_bias is 0.5: give a number of at least 1 and below 100"),
        ({"hidden_sizes": [30, 64, 128, 256]}, "groups do not divide"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PoaResNetConfig(**TINY | fields)


def test_defaults_follow_the_full_size():
    config = PoaResNetConfig()
    assert config.min_depths == [3, 4, 6, 3] and config.patch_grid == 16 and config.hidden_size == 2048
    assert list(PoaResNetConfig(num_groups=16).space.widths) == [64, 80, 96, 112, 128]


def test_timm_format_of_every_published_width():
    """The elastic sizes are what timm holds; names and shapes are checked in publishing/test_timm_format.py."""
    from poa_hf.publishing.formats.timm import as_timm

    with torch.device("meta"):
        model = PoaResNetModel(PoaResNetConfig())
    for size in ("50", "96x3-6-20-3", "128x3-4-6-3"):
        tensors, config = as_timm(GnResNetModel(model.config.stock_config(model.config.space.resolve(size))))
        resolved = model.config.space.resolve(size)
        assert config["model_args"] == {"layers": list(resolved.depths), "base_width": resolved.width}
        assert tensors["layer1.0.conv2.weight"].shape[:2] == (resolved.width, resolved.width)
