import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    DINOv3ViTBackbone,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    pipeline,
)

from poa_hf import PoaDinov3ViTConfig, PoaDinov3ViTModel, PoaForPreTraining, SubNetwork, costs, extract_to
from poa_hf.cli.recipe import parse_recipe
from poa_hf.models.activation_checkpointing import enable_activation_checkpointing

from ..conftest import random_batch, tiny_config

GATED = {"use_gated_mlp": True, "hidden_act": "silu"}


def tiny(**overrides) -> PoaDinov3ViTConfig:
    fields = dict(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, min_hidden_size=16, min_num_hidden_layers=1,
        image_size=32, patch_size=8, layerscale_value=0.1, drop_path_rate=0.0,
    )  # fmt: skip
    return PoaDinov3ViTConfig(**{**fields, **overrides})


def noisy(config: PoaDinov3ViTConfig) -> PoaDinov3ViTModel:
    """A model none of whose parameters are as they were initialised."""
    model = PoaDinov3ViTModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("fields", [{}, GATED])
@torch.no_grad()
def test_full_size_is_stock_dinov3(fields):
    model = noisy(tiny(**fields))
    stock = DINOv3ViTModel(model.config.stock_config(model.config.space.full)).eval()
    stock.load_state_dict(model.state_dict())
    for height, width in ((32, 32), (48, 24)):
        pixels = torch.randn(2, 3, height, width)
        masks = torch.rand(2, height * width // 64) < 0.4
        for more in ({}, {"bool_masked_pos": masks}):
            ours, theirs = model(pixels, **more), stock(pixels, **more)
            assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
            assert torch.equal(ours.pooler_output, theirs.pooler_output)


@pytest.mark.parametrize(
    "fields",
    [
        GATED,
        {"num_register_tokens": 0},
        {"key_bias": True, "query_bias": False, "value_bias": False, "proj_bias": False, "mlp_bias": False},
        {"intermediate_size": 100, **GATED},  # 50, 75 and 100: of a ratio that is no whole number
        {"num_channels": 5, "patch_size": 4, "rope_theta": 10.0, "hidden_act": "relu"},
    ],
)
@torch.no_grad()
def test_every_architecture_extracts_to_the_bit(fields):
    model = noisy(tiny(**fields))
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        pixels = torch.randn(2, model.config.num_channels, 32, 24, dtype=dtype)
        for size in model.config.space:
            extracted = model.extract(size)
            assert type(extracted) is DINOv3ViTModel and extracted.dtype == dtype
            assert torch.equal(extracted(pixels)[0], model(pixels, sub_network=size)[0])


def test_mlps_of_all_sizes_have_the_ratio_of_the_full_one():
    published = {(384, 1536, 6): 4, (1280, 5120, 20): 4, (4096, 8192, 32): 2}
    for (width, intermediate, heads), ratio in published.items():
        config = PoaDinov3ViTConfig(hidden_size=width, intermediate_size=intermediate, num_attention_heads=heads)
        for size in config.space:
            assert config.stock_config(size).intermediate_size == ratio * size.width
    assert PoaDinov3ViTConfig().intermediate_size == 4096
    model = noisy(tiny(intermediate_size=100))
    small = model.extract("small")
    assert small.config.intermediate_size == 50
    # each layer is scaled by its own fan-in
    ours, cut = model.model.layer[0].mlp, small.model.layer[0].mlp
    assert torch.equal(cut.up_proj.weight, ours.up_proj.weight[:50, :16] * (32 / 16))
    assert torch.equal(cut.down_proj.weight, ours.down_proj.weight[:16, :50] * (100 / 50))
    assert PoaDinov3ViTConfig(intermediate_size=2731).stock_config(SubNetwork(384, 12)).intermediate_size == 1024


@torch.no_grad()
def test_positions_are_those_of_the_paper_in_models_of_any_type():
    """Against NumPy in float64: angles 2 pi x / 100^(i/d), of rows first and then of columns, and the same again."""
    model = noisy(tiny(hidden_size=64)).to(torch.float64)
    cosines, sines = model.rope_embeddings(torch.zeros(1, 3, 24, 40, dtype=torch.float64))
    rows, columns = np.meshgrid((np.arange(3) + 0.5) / 3 * 2 - 1, (np.arange(5) + 0.5) / 5 * 2 - 1, indexing="ij")
    frequencies = 100.0 ** -(np.arange(4) / 4)
    angles = [2 * np.pi * centre.reshape(-1, 1) * frequencies for centre in (rows, columns)]
    expected = np.concatenate(2 * angles, axis=1)
    np.testing.assert_allclose(cosines, np.cos(expected), atol=1e-5)
    np.testing.assert_allclose(sines, np.sin(expected), atol=1e-5)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert model.to(dtype).rope_embeddings.inv_freq.dtype == torch.float32
        half = model.rope_embeddings(torch.zeros(1, 3, 24, 40, dtype=dtype))
        assert half[0].dtype == dtype and torch.equal(half[0], cosines.to(dtype))


@torch.no_grad()
def test_converted_loaded_and_extracted_models_are_the_same(tmp_path):
    model = noisy(tiny())
    model.save_pretrained(tmp_path / "elastic")
    model.extract().save_pretrained(tmp_path / "stock")
    for dtype in (torch.bfloat16, torch.float16):
        pixels = torch.randn(2, 3, 32, 32).to(dtype)
        converted = copy.deepcopy(model).to(dtype)
        expected = converted(pixels)[0]
        assert torch.equal(converted.extract()(pixels)[0], expected)
        for folder in ("elastic", "stock"):
            loaded = AutoModel.from_pretrained(tmp_path / folder, dtype=dtype)
            assert loaded.dtype == dtype and torch.equal(loaded(pixels)[0], expected)
    assert type(AutoConfig.from_pretrained(tmp_path / "elastic")) is PoaDinov3ViTConfig


def test_positions_move_in_training_only():
    """Students are trained at other scales and places, the same ones whenever the seed is the same."""
    pixels = random_batch()["global_crops"]
    fields = {"pos_embed_shift": None, "pos_embed_jitter": None, "pos_embed_rescale": None}
    for name, value in (("pos_embed_shift", 0.5), ("pos_embed_jitter", 2.0), ("pos_embed_rescale", 2.0)):
        model = noisy(tiny(**{**fields, name: value})).train()
        for size in (None, SubNetwork(16, 2)):
            outputs = []
            for seed in (1, 1, 2):
                torch.manual_seed(seed)
                outputs.append(model(pixels, sub_network=size)[0])
            assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[1], outputs[2])
        model.eval()
        assert torch.equal(model(pixels)[0], model(pixels)[0])
    still = noisy(tiny(**fields)).train()
    assert torch.equal(still(pixels)[0], still.eval()(pixels)[0])


def test_moved_positions_stay_within_the_configured_range():
    rope = PoaDinov3ViTModel(tiny(pos_embed_shift=0.25, pos_embed_jitter=None, pos_embed_rescale=None)).rope_embeddings
    pixels = torch.zeros(1, 3, 8, 8)  # one patch, whose centre is 0
    shifts = torch.stack([torch.cat(rope.train()(pixels)) for _ in range(50)])
    largest = np.cos(2 * np.pi * 0.25)  # of the fastest frequency, 1
    assert shifts[:, 0].min() >= largest - 1e-6 and shifts[:, 0].min() < 0.5 < shifts[:, 0].max()
    rope.config = tiny(pos_embed_rescale=4.0)
    assert torch.equal(rope(pixels)[0], torch.ones(1, 8))  # 0 times any factor


def test_stochastic_depth_and_checkpointing_give_the_same_gradients():
    model = PoaForPreTraining(tiny_config(tiny(drop_path_rate=0.5, pos_embed_jitter=1.5, **GATED))).train()
    batch = random_batch()

    def gradients():
        torch.manual_seed(3)
        model.zero_grad()
        model(**batch, sub_network=SubNetwork(16, 2), teacher_temperature=0.05).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    plain = gradients()
    enable_activation_checkpointing(model.student)
    torch.testing.assert_close(gradients(), plain, rtol=1e-5, atol=1e-6)


def test_registers_are_no_patches():
    for registers in (0, 4):
        model = noisy(tiny(num_register_tokens=registers))
        output = model(torch.randn(2, 3, 32, 24), sub_network="small")
        images, patches = model.image_tokens(output)
        assert images.shape == (2, 16) and patches.shape == (2, 12, 16)
        assert torch.equal(patches, output.last_hidden_state[:, 1 + registers :])


def test_what_transformers_asks_of_a_model():
    """Hidden states, attention weights, tuples and copies, of the full and of a smaller size."""
    model = noisy(tiny())
    pixels = random_batch()["global_crops"]
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        for size, depth, width in ((None, 3, 32), (SubNetwork(16, 2), 2, 16)):
            output = model(pixels, sub_network=size, output_hidden_states=True)
            assert [state.shape for state in output.hidden_states] == [(8, 21, width)] * (depth + 1)
            assert isinstance(model(pixels, sub_network=size, return_dict=False), tuple)
            assert torch.equal(copy.deepcopy(model)(pixels, sub_network=size)[0], output.last_hidden_state)
    output = model(pixels, sub_network=SubNetwork(16, 2), output_attentions=True)
    assert [weights.shape for weights in output.attentions] == [(8, 2, 21, 21)] * 2
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(8, 2, 21))


def test_attention_implementations_agree():
    model = noisy(tiny())
    pixels = random_batch()["global_crops"]
    outputs = []
    for implementation in ("sdpa", "eager"):
        model.set_attn_implementation(implementation)
        outputs.append(model(pixels, sub_network="small")[0])
        assert model.extract("small").config._attn_implementation == implementation
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


def test_counting_operations_leaves_nothing_behind():
    """Stock models keep the coordinates of patches in a cache, in which fake tensors would stay."""
    config = tiny(image_size=56)  # a grid that no other test has
    table = costs(config)
    small, full = (table[size] for size in (config.space.smallest, config.space.full))
    assert small.parameters == sum(p.numel() for p in noisy(config).extract("small").parameters())
    assert 0 < small.flops < full.flops
    model, pixels = noisy(config), torch.randn(1, 3, 56, 56)
    assert torch.equal(model.extract("small")(pixels)[0], model(pixels, sub_network="small")[0])


@torch.no_grad()
def test_what_is_extracted_is_used_as_any_dinov3(tmp_path):
    model = PoaForPreTraining(tiny_config(tiny()))
    size = model.config.backbone_config.space.smallest
    extract_to(model, size, tmp_path / "small")
    stock = AutoModel.from_pretrained(tmp_path / "small")
    pixels = torch.randn(2, 3, 32, 48)
    expected = model.eval().teacher(pixels, sub_network=size).last_hidden_state
    assert type(stock) is DINOv3ViTModel and torch.equal(stock(pixels)[0], expected)
    backbone = DINOv3ViTBackbone.from_pretrained(tmp_path / "small")
    assert type(AutoBackbone.from_config(backbone.config)) is DINOv3ViTBackbone
    (features,) = backbone(pixels).feature_maps
    assert torch.equal(features.flatten(2).transpose(1, 2), expected[:, 5:]) and features.shape == (2, 16, 4, 6)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    processor = AutoImageProcessor.from_pretrained(tmp_path / "small")  # one that needs no torchvision
    found = pipeline("image-feature-extraction", str(tmp_path / "small"))(image, return_tensors=True)
    assert torch.equal(found, stock(**processor(image, return_tensors="pt")).last_hidden_state)


def test_a_saved_run_is_loaded_with_its_positions(tmp_path):
    """Frequencies are in no file: they are computed anew."""
    model = PoaForPreTraining(tiny_config(tiny(rope_theta=7.0))).eval()
    model.save_pretrained(tmp_path)
    loaded = PoaForPreTraining.from_pretrained(tmp_path).eval()
    pixels = random_batch()["global_crops"]
    for name in ("student", "teacher"):
        ours, theirs = getattr(model, name), getattr(loaded, name)
        assert torch.equal(theirs.rope_embeddings.inv_freq, ours.rope_embeddings.inv_freq)
        assert torch.equal(theirs(pixels, sub_network="small")[0], ours(pixels, sub_network="small")[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 100}, "hidden_size 100 is not a multiple of num_attention_heads 16"),
        ({"hidden_size": 96}, "is 6: rotary positions in rows and columns need a multiple of 4"),
        ({"min_hidden_size": 400}, "min_hidden_size 400 is not a positive multiple of 64"),
        ({"min_num_hidden_layers": 25}, "min_num_hidden_layers 25 is larger"),
        ({"intermediate_size": 0}, "intermediate_size is 0: give a whole number of at least 1"),
        ({"intermediate_size": 2}, "intermediate_size 2 leaves the MLPs of min_hidden_size 384 no channels"),
        ({"num_register_tokens": -1}, "num_register_tokens is -1: give a whole number of at least 0"),
        ({"image_size": 225}, "image_size 225 is not a multiple of patch_size 16: use 224 or 240"),
        ({"patch_size": [8, 16]}, "patch_size must be one number"),
        ({"pos_embed_rescale": 0.5}, "pos_embed_rescale is 0.5: give a number of at least 1"),
        ({"pos_embed_jitter": 0}, "pos_embed_jitter is 0: give a number of at least 1"),
        ({"pos_embed_shift": -0.1}, "pos_embed_shift is -0.1: give a number of at least 0"),
        ({"pos_embed_shift": float("nan")}, "pos_embed_shift is nan: give a number"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0: give a number above 0"),
        ({"hidden_act": "foo"}, "hidden_act 'foo' is not an activation"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PoaDinov3ViTConfig(**fields)


@pytest.mark.parametrize(
    ("recipe", "full", "parameters", "smaller"),
    [  # as published: 21, 29, 86, 300 and 840 million (arXiv 2508.10104)
        ("dinov3_small", "384x12", 21.6, {"192x6": 2.8}),
        ("dinov3_small_plus", "384x12", 28.7, {"192x6": 3.7}),
        ("dinov3_base", "768x12", 85.7, {"384x12": 21.6}),
        ("dinov3_large", "1024x24", 303.1, {"384x12": 21.6, "768x12": 85.7}),
        ("dinov3_huge_plus", "1280x32", 840.6, {"384x12": 28.7}),
    ],
)
def test_recipes_hold_the_published_sizes(recipe, full, parameters, smaller):
    config = parse_recipe(["--config", recipe]).model.backbone_config
    assert str(config.space.full) == full
    for size, millions in {full: parameters, **smaller}.items():
        with torch.device("meta"):
            model = DINOv3ViTModel(config.stock_config(config.space.resolve(size)))
        assert round(model.num_parameters() / 1e6, 1) == millions


def test_configurations_of_sizes_are_stock_ones():
    """A default configuration is DINOv3's ViT-L in all but what pre-training starts from."""
    config = PoaDinov3ViTConfig()
    full = config.stock_config(config.space.full)
    published = DINOv3ViTConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, num_register_tokens=4,
        layerscale_value=1e-5,
    )  # fmt: skip
    assert type(full) is DINOv3ViTConfig and full.to_dict() == published.to_dict()
    names = ("layerscale_value", "rope_theta", "pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")
    whole = PoaDinov3ViTConfig(**dict.fromkeys(names, 2))  # as YAML gives them
    for size in (whole.stock_config(whole.space.full), whole.plain_config(whole.space.smallest)):
        assert [getattr(size, name) for name in names] == [2.0] * 5
    assert [str(config.space.named[name]) for name in ("small", "base", "large")] == ["384x12", "768x12", "1024x24"]
