import pytest
import torch
from transformers import AutoModelForImageClassification, SwinBackbone, SwinForImageClassification, SwinModel

from poa_hf import PoaSwinConfig, PoaSwinModel, SubNetwork
from poa_hf.elastic import block_indices

TINY = dict(
    embed_dim=16, depths=[2, 2, 4, 2], num_heads=[2, 4, 8, 16], image_size=224, min_embed_dim=8,
    min_depths=[2, 2, 2, 2], drop_path_rate=0.0,
)  # fmt: skip


def tiny_swin(**overrides) -> PoaSwinModel:
    model = PoaSwinModel(PoaSwinConfig(**TINY | overrides)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def test_full_size_is_stock_swin():
    model = tiny_swin()
    stock = SwinModel(model.config.stock_config(model.config.space.full), use_mask_token=True).eval()
    stock.load_state_dict(model.state_dict())
    pixels = torch.randn(2, 3, 224, 224)
    squares = torch.rand(2, 14, 14) < 0.3
    patches = squares.repeat_interleave(4, 1).repeat_interleave(4, 2)
    for mask, stock_mask in ((None, None), (squares.flatten(1), patches.flatten(1))):
        output, expected = model(pixels, bool_masked_pos=mask), stock(pixels, bool_masked_pos=stock_mask)
        assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
        assert torch.equal(output.pooler_output, expected.pooler_output)


@torch.no_grad()
def test_extracted_tensors_by_index_arithmetic():
    model = tiny_swin()
    extracted = model.extract(SubNetwork(8, (2, 2, 3, 2)))
    full, small = dict(model.named_parameters()), dict(extracted.named_parameters())
    block = f"encoder.layers.2.blocks.{block_indices(4, 3)[1]}"
    # stage 3 is 64 wide, and 32 in the sub-network; heads of 8
    query = full[f"{block}.attention.q_proj.weight"][:32, :32] * 2
    assert torch.equal(small["encoder.layers.2.blocks.1.attention.q_proj.weight"], query)
    table = full[f"{block}.attention.relative_position_bias.relative_position_bias_table"][:, :4]
    assert torch.equal(
        small["encoder.layers.2.blocks.1.attention.relative_position_bias.relative_position_bias_table"], table
    )
    merging = full["encoder.layers.0.downsample.reduction.weight"]  # four groups of 16 channels, 8 of each are kept
    columns = [16 * group + channel for group in range(4) for channel in range(8)]
    assert torch.equal(small["encoder.layers.0.downsample.reduction.weight"], merging[:16, columns] * 2)
    assert torch.equal(
        small["encoder.layers.0.downsample.norm.weight"], full["encoder.layers.0.downsample.norm.weight"][columns]
    )
    projection = "embeddings.patch_embeddings.projection.weight"
    assert torch.equal(small[projection], full[projection][:8])
    assert "embeddings.mask_token" not in small


@torch.no_grad()
def test_what_loads_an_extracted_swin(tmp_path):
    model, size = tiny_swin(), SubNetwork(8, (2, 2, 2, 2))
    model.extract(size).save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 224, 224)
    expected = model(pixels, sub_network=size)
    classifier, report = AutoModelForImageClassification.from_pretrained(
        tmp_path, num_labels=3, output_loading_info=True
    )
    assert type(classifier) is SwinForImageClassification
    assert set(report["missing_keys"]) == {"classifier.weight", "classifier.bias"} and not report["unexpected_keys"]
    assert torch.equal(classifier.swin(pixels).pooler_output, expected.pooler_output)
    backbone = SwinBackbone.from_pretrained(tmp_path, out_features=["stage1", "stage4"])
    assert [tuple(maps.shape) for maps in backbone(pixels).feature_maps] == [(1, 8, 56, 56), (1, 64, 7, 7)]


def test_windows_keep_their_size_on_small_maps():
    """Stock Swin fails here; ours pads, and shifts only where the map is larger than the window."""
    model = tiny_swin()
    output = model(torch.randn(2, 3, 96, 96))
    assert output.last_hidden_state.shape == (2, 9, 128) and output.pooler_output.shape == (2, 128)
    features, patches = model.image_tokens(output)
    assert patches.shape == (2, 36, 128)
    side = patches.detach().unflatten(1, (6, 6))
    assert torch.equal(side[:, 0, 0], side[:, 1, 1]) and torch.equal(side[:, 2, 4], output.last_hidden_state[:, 5])
    torch.testing.assert_close(features, output.last_hidden_state.mean(1))
    with pytest.raises(ValueError, match="18 tokens are not a square map"):
        model.image_tokens(model(torch.randn(1, 3, 96, 192)))


@torch.no_grad()
def test_a_kept_block_takes_the_window_shift_of_its_new_place():
    model = tiny_swin()
    plain = model.sliced(SubNetwork(16, (2, 2, 3, 2))).plain
    assert [block.shift_size for block in plain.encoder.layers[2].blocks] == [0, 3, 0]


def test_always_partition_is_that_of_stock_swin():
    model = tiny_swin()
    stock, pixels = model.extract(), torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(model(pixels, always_partition=True)[0], stock(pixels, always_partition=True)[0])
        assert not torch.equal(model(pixels, always_partition=True)[0], model(pixels)[0])


@pytest.mark.parametrize(
    "fields",
    [
        {"use_absolute_embeddings": True},
        {"qkv_bias": False},
        {"mlp_ratio": 3.0},
        {"hidden_act": "relu"},
        {"num_channels": 1},
        {"patch_size": 8, "depths": [1, 3, 1], "num_heads": [2, 4, 8], "min_depths": None},
        {"num_heads": [2, 2, 4, 8], "min_embed_dim": 8},
    ],
)
@torch.no_grad()
def test_other_architectures_extract_to_the_bit(fields):
    model = tiny_swin(**fields)
    pixels = torch.randn(1, model.config.num_channels, 224, 224)
    for size in model.config.space:
        assert torch.equal(model.extract(size)(pixels)[0], model(pixels, sub_network=size)[0]), size
    if model.config.use_absolute_embeddings:
        assert model(torch.randn(1, 3, 96, 96), sub_network=size)[0].shape == (1, 9, 8 * size.width)


@torch.no_grad()
def test_outputs_and_attention_implementations():
    model = tiny_swin()
    pixels, size = torch.randn(1, 3, 224, 224), SubNetwork(8, (2, 2, 2, 2))
    expected = model(pixels, sub_network=size)
    model.set_attn_implementation("eager")
    extracted = model.extract(size).train()  # without stochastic depth, which belongs to pre-training
    assert torch.equal(extracted(pixels)[0], model(pixels, sub_network=size)[0])
    output = model(pixels, sub_network=size, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state, rtol=1e-4, atol=1e-5)
    assert [tuple(s.shape[1:]) for s in output.hidden_states] == [(3136, 8), (784, 16), (196, 32), (49, 64), (49, 64)]
    assert [tuple(s.shape[1:]) for s in output.reshaped_hidden_states][-1] == (64, 7, 7)
    assert [a.shape[1] for a in output.attentions] == [1, 2, 4, 8]
    assert isinstance(model(pixels, sub_network=size, return_dict=False), tuple)


def test_stochastic_depth_acts_on_both_branches():
    model = tiny_swin(drop_path_rate=0.5).train()
    block = model.encoder.layers[0].blocks[0]
    seen = []
    for branch in (block.layernorm_before, block.layernorm_after):
        branch.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    model(torch.randn(4, 3, 96, 96))
    assert seen == [2, 2]


def test_whole_windows_of_mask_tokens_keep_gradients_finite():
    """Zero tokens through LayerNorm after LayerNorm gave gradients above 1e7 here."""
    model = PoaSwinModel(PoaSwinConfig(**TINY)).train()
    masks = torch.zeros(1, 14, 14, dtype=torch.bool)
    masks[:, :8] = True
    tokens = model(torch.randn(1, 3, 224, 224), bool_masked_pos=masks.flatten(1)).last_hidden_state
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert 0 < model.embeddings.mask_token.grad.norm() < 1e4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embed_dim": 100, "num_heads": None}, "embed_dim 100 is not a positive multiple of 16"),
        ({"embed_dim": 18}, "Stage 1 is 18 wide, which 4 heads do not divide"),
        ({"min_embed_dim": 12}, "min_embed_dim 12 is not a positive multiple of 8 .whole heads in every stage"),
        ({"min_embed_dim": 32}, "min_embed_dim 32 is larger than embed_dim 16"),
        ({"embed_dim": 32, "embed_dim_step": 24, "min_embed_dim": 16}, "Steps of 24 .embed_dim_step. do not lead"),
        ({"embed_dim_step": 12}, "embed_dim_step 12 is not a positive multiple of 8"),
        ({"min_depths": [2, 2, 2]}, r"min_depths \[2, 2, 2\] must have as many stages as depths \[2, 2, 4, 2\]"),
        ({"min_depths": [2, 2, 5, 2]}, "min_depths of stage 3 is 5: it must lie between 1 and depths' 4"),
        ({"min_depths": [0, 2, 2, 2]}, r"min_depths is \[0, 2, 2, 2\]: give whole numbers of at least 1"),
        ({"depths": [2, 2, 4]}, r"num_heads \[2, 4, 8, 16\] must have as many stages as depths"),
        ({"depths": [2], "num_heads": [2]}, r"depths \[2\] has one stage"),
        ({"depths": [2, 0, 4, 2]}, r"depths is \[2, 0, 4, 2\]: give whole numbers of at least 1"),
        ({"window_size": 8}, "window_size 8 does not fit: the last feature map of images of 224 has 7 positions"),
        ({"image_size": 96}, "window_size 7 does not fit: the last feature map of images of 96 has 3 positions"),
        ({"image_size": [224, 96]}, "image_size must be one number"),
        ({"patch_size": 0}, "patch_size is 0: give a whole number of at least 1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0: give a number of at least 0 and below 1"),
        ({"sampling_bias": 0}, "sampling_bias is 0: give a number of at least 1 and below 100"),
        ({"hidden_act": "foo"}, "hidden_act 'foo' is not an activation"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields, message):
    heads = {"num_heads": [4, 8, 16, 32]} if fields.get("embed_dim") in (18, 32) else {}
    with pytest.raises(ValueError, match=message):
        PoaSwinConfig(**{**TINY, **heads, **fields})


def test_defaults_follow_the_full_size():
    config = PoaSwinConfig()
    assert config.num_heads == [8, 16, 32, 64] and config.min_depths == [2, 2, 6, 2] and config.patch_grid == 16
    assert PoaSwinConfig(image_size=200).window_size == 7  # its last map has 7 positions, one of them padded
    config = PoaSwinConfig(embed_dim=64, depths=[2, 2, 6, 2])
    assert config.num_heads == [4, 8, 16, 32] and str(config.space.smallest) == "48x2-2-2-2"
