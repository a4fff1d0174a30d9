"""What the elastic DINOv2 with registers does beside the contract of all families (test_contract.py)."""

import pytest
import torch
from transformers import (
    AutoBackbone,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    pipeline,
)

from poa_hf import PoaDinov2RegistersConfig, PoaDinov2RegistersModel, PoaForPreTraining, SubNetwork, extract_to
from poa_hf.selection.costs import count_costs

from ..conftest import random_batch, tiny_config


def tiny_backbone(**overrides) -> PoaDinov2RegistersConfig:
    fields = dict(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, min_hidden_size=16, min_num_hidden_layers=1,
        image_size=32, patch_size=8, layerscale_value=0.1, drop_path_rate=0.0, num_register_tokens=3,
    )  # fmt: skip
    return PoaDinov2RegistersConfig(**{**fields, **overrides})


@torch.no_grad()
def trained(config: PoaDinov2RegistersConfig) -> PoaDinov2RegistersModel:
    """A model whose registers, mask token and biases are not the zeros that they start as."""
    model = PoaDinov2RegistersModel(config).eval()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def test_the_full_size_is_the_stock_model():
    model = trained(tiny_backbone())
    stock = Dinov2WithRegistersModel(model.config.stock_config(model.config.space.full)).eval()
    stock.load_state_dict(model.state_dict())
    batch = random_batch()
    for masks in (None, batch["masks"]):
        expected = stock(batch["global_crops"], bool_masked_pos=masks)
        output = model(batch["global_crops"], bool_masked_pos=masks)
        assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
        assert torch.equal(output.pooler_output, expected.pooler_output)


VARIANTS = {
    "gated": dict(use_swiglu_ffn=True),
    "gated, widths that round up": dict(hidden_size=60, num_attention_heads=10, min_hidden_size=6, use_swiglu_ffn=True),
    "no biases of queries, keys and values": dict(qkv_bias=False),
    "patches of 14": dict(image_size=42, patch_size=14),
    "no register": dict(num_register_tokens=0),
    "one channel": dict(num_channels=1),
    "relu and a narrow MLP": dict(hidden_act="relu", mlp_ratio=2.0),
}


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_other_architectures_extract_to_the_bit(fields):
    model = trained(tiny_backbone(num_hidden_layers=2, **fields))
    patch, channels = model.config.patch_size, model.config.num_channels
    for dtype, (height, width) in ((torch.float32, (3 * patch, 5 * patch)), (torch.bfloat16, (4 * patch, 4 * patch))):
        model, pixels = model.to(dtype), torch.randn(2, channels, height, width, dtype=dtype)
        for size in model.config.space:
            extracted, ours = model.extract(size), model(pixels, sub_network=size).last_hidden_state
            assert ours.shape == (2, model.config.num_prefix_tokens + height * width // patch**2, size.width)
            assert extracted.dtype == dtype and torch.equal(extracted(pixels).last_hidden_state, ours)


@torch.no_grad()
def test_heads_read_the_class_token_and_the_patches_without_registers():
    model = trained(tiny_backbone())
    output = model(random_batch()["global_crops"], sub_network="16x2")
    images, patches = model.image_tokens(output)
    assert torch.equal(images, output.last_hidden_state[:, 0])
    assert torch.equal(patches, output.last_hidden_state[:, 4:]) and patches.shape == (8, 16, 16)


@torch.no_grad()
def test_hidden_states_and_attentions_are_those_of_the_stock_model():
    model = trained(tiny_backbone())
    model.set_attn_implementation("eager")
    pixels = random_batch()["global_crops"]
    for size in ("32x3", "16x2"):
        ours = model(pixels, sub_network=size, output_hidden_states=True, output_attentions=True)
        theirs = model.extract(size)(pixels, output_hidden_states=True, output_attentions=True)
        depth = SubNetwork.parse(size).depths[0]
        assert len(ours.hidden_states) == depth + 1 and len(ours.attentions) == depth
        for kind in ("hidden_states", "attentions"):
            assert all(torch.equal(a, b) for a, b in zip(ours[kind], theirs[kind], strict=True))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_register_tokens": -1}, "num_register_tokens is -1: give a whole number of at least 0"),
        ({"hidden_size": 100}, "hidden_size 100 is not a multiple of num_attention_heads 16"),
        ({"mlp_ratio": 2.5}, "mlp_ratio must be a whole number"),
        ({"image_size": [32, 64]}, "image_size must be one number"),
        ({"image_size": 224, "patch_size": 15}, "image_size 224 is not a multiple of patch_size 15: use 210 or 225"),
        ({"head_dim": 16}, "head_dim cannot be set"),
        ({"sampling_bias": 0}, "sampling_bias is 0: give a number of at least 1 and below 100"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PoaDinov2RegistersConfig(**fields)


def test_every_field_of_the_stock_configuration_reaches_the_extracted_model():
    """What the elastic configuration does not know of would be lost silently."""
    values = dict(
        mlp_ratio=2, hidden_act="relu", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2, image_size=28,
        initializer_range=0.03, layer_norm_eps=1e-5, patch_size=7, num_channels=4, qkv_bias=False, layerscale_value=0.5,
        use_swiglu_ffn=True, num_register_tokens=5, apply_layernorm=False, reshape_hidden_states=False,
    )  # fmt: skip
    size = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4)
    config = PoaDinov2RegistersConfig(**size, **values, drop_path_rate=0.3)
    assert config.stock_config(config.space.full).to_dict() == Dinov2WithRegistersConfig(**size, **values).to_dict()


def test_costs_are_counted_with_registers():
    config = tiny_backbone()
    size = config.space.smallest
    assert count_costs(config, size).parameters == PoaDinov2RegistersModel(config).extract(size).num_parameters()
    more = count_costs(tiny_backbone(num_register_tokens=8), size)
    assert more.flops > count_costs(config, size).flops and more.parameters > count_costs(config, size).parameters


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """A teacher and the folder of one of its sizes."""
    torch.manual_seed(0)
    model = PoaForPreTraining(tiny_config(tiny_backbone())).eval()
    model.teacher = trained(model.config.backbone_config)
    folder = tmp_path_factory.mktemp("extracted") / "24x2"
    extract_to(model, SubNetwork(24, 2), folder)
    return model.teacher, folder


@torch.no_grad()
def test_a_stock_backbone_gives_the_patches_as_maps(extracted, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.repo_exists", lambda *args, **kwargs: True)  # asked even for a folder
    teacher, folder = extracted
    backbone = AutoBackbone.from_pretrained(folder).eval()
    pixels = torch.randn(2, 3, 32, 48)
    tokens = teacher(pixels, sub_network="24x2").last_hidden_state[:, 4:]  # without class token and registers
    (feature_map,) = backbone(pixels).feature_maps
    assert torch.equal(feature_map, tokens.transpose(1, 2).unflatten(2, (4, 6)))


def test_a_stock_classifier_starts_from_its_weights(extracted):
    teacher, folder = extracted
    classifier, report = AutoModelForImageClassification.from_pretrained(folder, num_labels=3, output_loading_info=True)
    assert sorted(report["missing_keys"]) == ["classifier.bias", "classifier.weight"]
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    classifier(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 2])).loss.backward()
    assert all(parameter.grad is not None for name, parameter in classifier.named_parameters() if "mask" not in name)


@torch.no_grad()
def test_the_feature_extraction_pipeline_gives_the_features(extracted):
    from PIL import Image

    teacher, folder = extracted
    image = Image.effect_noise((50, 40), 60).convert("RGB")
    features = pipeline("image-feature-extraction", model=str(folder), pool=True)(image)
    pixels = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
    expected = teacher(pixels, sub_network="24x2").pooler_output
    torch.testing.assert_close(torch.tensor(features), expected)
    assert type(AutoModel.from_pretrained(folder)) is Dinov2WithRegistersModel
