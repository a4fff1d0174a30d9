import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from poa_hf.data.processor import evaluation_processor
from poa_hf.models.configuration_gn_resnet import GnResNetConfig
from poa_hf.models.modeling_gn_resnet import GnResNetForImageClassification, GnResNetModel
from poa_hf.publishing.formats.timm import as_timm, save_as_timm

from ...test_contract import PUBLISHED, TINY

try:
    import timm
except Exception:  # timm needs a torchvision that goes with the installed torch
    timm = None

FIXTURES = Path(__file__).parents[2] / "fixtures"
RECORDED = json.loads((FIXTURES / "timm_resnet_gn.json").read_text())["sizes"]
TRANSFORMERS = json.loads((FIXTURES / "timm_transformers.json").read_text())["models"]
SIZES = {"64x3-4-6-3": (64, [3, 4, 6, 3]), "96x3-6-21-3": (96, [3, 6, 21, 3]), "128x3-8-36-3": (128, [3, 8, 36, 3])}


def recorded_shapes(size: str) -> dict[str, tuple[int, ...]]:
    """timm's own names and shapes."""
    shapes = dict(RECORDED[size]["stem"])
    for number, stage in enumerate(RECORDED[size]["stages"], start=1):
        for block in range(stage["depth"]):
            part = stage["later" if block else "first"]
            shapes |= {f"layer{number}.{block}.{name}": shape for name, shape in part.items()}
    return {name: tuple(shape) for name, shape in shapes.items()}


def small_model(**overrides) -> GnResNetModel:
    """A model as narrow and shallow as timm's format allows."""
    model = GnResNetModel(GnResNetConfig(**{"base_width": 32, "depths": [1, 2, 1, 1], "image_size": 96, **overrides}))
    return randomised(model)


def randomised(model):
    """Normalisations away from ones and zeros, so that each of them matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("size", SIZES)
def test_names_and_shapes_are_timms(size):
    base_width, depths = SIZES[size]
    with torch.device("meta"):
        model = GnResNetModel(GnResNetConfig(base_width=base_width, depths=depths))
    tensors, config = as_timm(model)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == recorded_shapes(size)
    assert config["model_args"] == {"layers": depths, "base_width": base_width}


def test_every_tensor_keeps_its_place():
    model = small_model()
    tensors, _ = as_timm(model)
    block = model.encoder.stages[1].layers[0]
    assert torch.equal(tensors["conv1.weight"], model.embedder.embedder.convolution.weight)
    assert torch.equal(tensors["bn1.bias"], model.embedder.embedder.normalization.bias)
    for number in (1, 2, 3):
        assert torch.equal(tensors[f"layer2.0.conv{number}.weight"], block.layer[number - 1].convolution.weight)
        assert torch.equal(tensors[f"layer2.0.bn{number}.weight"], block.layer[number - 1].normalization.weight)
    assert torch.equal(tensors["layer2.0.downsample.0.weight"], block.shortcut.convolution.weight)
    assert torch.equal(tensors["layer2.0.downsample.1.bias"], block.shortcut.normalization.bias)
    assert len(tensors) == len(model.state_dict())


def test_saved_folder(tmp_path):
    model = small_model().to(memory_format=torch.channels_last)
    save_as_timm(model, tmp_path / "new" / "folder", evaluation_processor(96, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]))
    loaded, expected = load_file(tmp_path / "new" / "folder" / "model.safetensors"), as_timm(model)[0]
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[name], expected[name]) for name in loaded)
    config = json.loads((tmp_path / "new" / "folder" / "config.json").read_text())
    assert config == {
        "architecture": "resnet50_gn",
        "num_classes": 0,
        "num_features": 2048,
        "global_pool": "avg",
        "model_args": {"layers": [1, 2, 1, 1], "base_width": 32},
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, 96, 96],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": pytest.approx(96 / 110),
            "crop_mode": "center",
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "num_classes": 0,
            "pool_size": [3, 3],
            "first_conv": "conv1",
            "classifier": "fc",
        },
    }


def test_timm_resizes_to_what_the_processor_does():
    with torch.device("meta"):
        model = GnResNetModel(GnResNetConfig(depths=[1, 1, 1, 1]))
    processor = evaluation_processor(96, [0.5] * 3, [0.5] * 3)
    for short_side in range(96, 200):
        processor.size = {"shortest_edge": short_side}
        crop_pct = as_timm(model, processor)[1]["pretrained_cfg"]["crop_pct"]
        assert math.floor(96 / crop_pct) == short_side  # as timm.data computes it


def test_images_are_prepared_as_in_the_usual_evaluation_by_default():
    pretrained_cfg = as_timm(small_model(image_size=224, num_channels=1))[1]["pretrained_cfg"]
    assert pretrained_cfg["input_size"] == [1, 224, 224] and pretrained_cfg["crop_pct"] == 0.875
    assert pretrained_cfg["mean"] == [0.449] and pretrained_cfg["pool_size"] == [7, 7]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding_size": 32}, "embedding_size 64, not 32"),
        ({"hidden_sizes": [64, 128, 256, 512]}, r"hidden_sizes \[256, 512, 1024, 2048\], not \[64, 128, 256, 512\]"),
        ({"hidden_sizes": [256, 512], "depths": [1, 1]}, "hidden_sizes"),
        ({"num_groups": 16}, "num_groups 32, not 16"),
        ({"hidden_act": "gelu"}, "hidden_act relu, not gelu"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps 1e-05, not 1e-06"),
    ],
)
def test_what_timm_cannot_hold_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        as_timm(small_model(**fields))


def test_other_models_and_processors_are_refused():
    with pytest.raises(ValueError, match="not a GnResNetForImageClassification"), torch.device("meta"):
        as_timm(GnResNetForImageClassification(GnResNetConfig(depths=[1, 1, 1, 1])))
    for changed in ({"do_center_crop": False}, {"do_normalize": False}, {"size": {"height": 96, "width": 96}}):
        processor = evaluation_processor(96, [0.5] * 3, [0.5] * 3)
        for name, value in changed.items():
            setattr(processor, name, value)
        with pytest.raises(ValueError, match="resizes the short side"):
            as_timm(small_model(), processor)


needs_timm = pytest.mark.skipif(timm is None, reason="needs timm")


def same_features(ours: GnResNetModel, theirs) -> bool:
    pixels = torch.randn(2, ours.config.num_channels, 64, 64)
    with torch.no_grad():
        output, maps, pooled = ours(pixels), theirs.eval().forward_features(pixels), theirs(pixels)
    return torch.allclose(output.last_hidden_state, maps, rtol=1e-4, atol=1e-5) and torch.allclose(
        output.pooler_output, pooled, rtol=1e-4, atol=1e-5
    )


@needs_timm
@pytest.mark.parametrize("size", SIZES)
def test_timm_computes_the_same(size):
    base_width, depths = SIZES[size]
    model = randomised(GnResNetModel(GnResNetConfig(base_width=base_width, depths=depths)))
    tensors, config = as_timm(model)
    theirs = timm.create_model(config["architecture"], num_classes=0, **config["model_args"])
    assert {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()} == recorded_shapes(size)
    theirs.load_state_dict(tensors)
    assert same_features(model, theirs)


@needs_timm
@pytest.mark.parametrize("num_channels", [3, 1])
def test_timm_loads_the_folder(tmp_path, num_channels):
    model = small_model(num_channels=num_channels)
    save_as_timm(model, tmp_path, evaluation_processor(96, [0.1] * num_channels, [0.4] * num_channels))
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert same_features(model, theirs)
    data = timm.data.resolve_model_data_config(theirs)
    assert tuple(data["input_size"]) == (num_channels, 96, 96) and data["mean"] == [0.1] * num_channels
    classifier = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7)
    assert classifier(torch.randn(1, num_channels, 64, 64)).shape == (1, 7)
    assert torch.equal(classifier.layer4[0].conv2.weight, theirs.layer4[0].conv2.weight)


BIASES = ("query_bias", "value_bias", "proj_bias", "mlp_bias")
# Family, fields that differ from the tiny ones, and the side of the images where it is not the model's own.
CASES = {
    "vit": ("vit", {}, None),
    "vit of other images": ("vit", {}, 48),
    "vit of other patches and no biases": ("vit", dict(qkv_bias=False, patch_size=4, mlp_ratio=3), None),
    "grey vit": ("vit", dict(num_channels=1, image_size=64, patch_size=16), None),
    "gated vit": ("vit", dict(use_swiglu_ffn=True), None),
    "registers": ("dinov2_registers", {}, None),
    "registers and other images": ("dinov2_registers", {}, 56),
    "no registers": ("dinov2_registers", dict(num_register_tokens=0), None),
    "gated with a register": ("dinov2_registers", dict(use_swiglu_ffn=True, num_register_tokens=1), None),
    "dinov3, gated": ("dinov3_vit", {}, None),
    "dinov3": ("dinov3_vit", dict(use_gated_mlp=False, hidden_act="gelu", intermediate_size=170), None),
    "dinov3 of other images": ("dinov3_vit", dict(num_register_tokens=0, rope_theta=50.0), 48),
    "dinov3 without biases": ("dinov3_vit", dict.fromkeys(BIASES, False), None),
    "swin": ("swin", {}, None),
    "swin of other images": ("swin", {}, 96),
    "swin of other windows": ("swin", dict(window_size=4, qkv_bias=False), None),
    "swin of four channels": ("swin", dict(patch_size=4, image_size=128, mlp_ratio=2.5, num_channels=4), None),
}  # fmt: skip


def transformer(case: str, size: str = "smallest"):
    """An extracted model, and the processor of its images."""
    family, fields, side = CASES[case]
    config = PUBLISHED[family][0](**{**TINY[family], **fields}, drop_path_rate=0.0)
    torch.manual_seed(0)
    model = AutoModel.from_config(config).extract(getattr(config.space, size)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    statistics = [0.5] * config.num_channels
    return model, evaluation_processor(side or config.image_size, statistics, statistics)


@pytest.mark.parametrize("case", CASES)
def test_names_and_shapes_of_transformers_are_timms(case):
    tensors, config = as_timm(*transformer(case))
    recorded = TRANSFORMERS[case]
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == recorded["shapes"]
    assert (config["architecture"], config["model_args"]) == (recorded["architecture"], recorded["model_args"])
    assert config["num_features"] == recorded["num_features"]


def test_queries_keys_and_values_keep_their_order():
    model, processor = transformer("dinov3")
    tensors, _ = as_timm(model, processor)
    attention = model.model.layer[1].attention
    query, key, value = tensors["blocks.1.attn.qkv.weight"].chunk(3)
    assert torch.equal(query, attention.q_proj.weight) and torch.equal(key, attention.k_proj.weight)
    assert torch.equal(value, attention.v_proj.weight) and torch.equal(
        tensors["blocks.1.attn.v_bias"], attention.v_proj.bias
    )


def test_a_class_token_beside_registers_holds_its_position():
    """As in timm, where neither the class token nor registers have positions."""
    model, processor = transformer("registers")
    tensors, _ = as_timm(model, processor)
    embeddings = model.embeddings
    assert torch.equal(tensors["cls_token"], embeddings.cls_token + embeddings.position_embeddings[:, :1])
    assert torch.equal(tensors["pos_embed"], embeddings.position_embeddings[:, 1:])


@pytest.mark.parametrize(
    ("family", "fields", "side", "message"),
    [
        ("vit", dict(layer_norm_eps=1e-5), 32, "layer_norm_eps 1e-06, not 1e-05: use the format dinov2"),
        ("vit", dict(hidden_act="relu"), 32, "hidden_act gelu, not relu"),
        ("vit", {}, 36, "36 pixels in patches of 8"),
        ("dinov3_vit", dict(key_bias=True), 32, "key_bias False, not True: use the format dinov3_vit"),
        ("dinov3_vit", dict(hidden_act="gelu"), 32, "hidden_act silu, not gelu"),
        ("swin", dict(use_absolute_embeddings=True), 64, "use_absolute_embeddings False, not True"),
        ("swin", dict(depths=[2, 2, 2, 2]), 80, "stage 4 has 5 positions a side for images of 80 pixels"),
        ("swin", dict(window_size=4), 32, "stage 4 has 2 positions a side for images of 32 pixels"),
    ],
)
def test_transformers_that_timm_cannot_hold_are_refused(family, fields, side, message):
    config = PUBLISHED[family][0](**{**TINY[family], **fields})
    with torch.device("meta"):
        model = AutoModel.from_config(config).extract(config.space.full)
    with pytest.raises(ValueError, match=message):
        as_timm(model, evaluation_processor(side, [0.5] * 3, [0.5] * 3))


@needs_timm
@pytest.mark.parametrize("size", ["smallest", "full"])
@pytest.mark.parametrize("case", CASES)
def test_timm_and_its_wrapper_compute_what_transformers_do(tmp_path, case, size):
    model, processor = transformer(case, size)
    save_as_timm(model, tmp_path, processor)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    wrapped = AutoModel.from_pretrained(tmp_path).eval()
    assert type(wrapped).__name__ == "TimmWrapperModel"
    side = processor.crop_size["height"]
    pixels = torch.randn(2, model.config.num_channels, side, side)
    with torch.no_grad():
        output, maps, pooled, through = model(pixels), theirs.forward_features(pixels), theirs(pixels), wrapped(pixels)
    expected = output.last_hidden_state
    close = dict(rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    torch.testing.assert_close(maps.reshape(expected.shape), expected, **close)
    torch.testing.assert_close(pooled, output.pooler_output, **close)
    torch.testing.assert_close(through.pooler_output, output.pooler_output, **close)
