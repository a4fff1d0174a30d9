import copy

import pytest
import torch
from transformers import AutoConfig, AutoModel, Dinov2Model

from poa_hf import PoaViTConfig, PoaViTModel, SubNetwork

from ..conftest import random_batch, tiny_backbone


def test_full_size_is_stock_dinov2():
    model = PoaViTModel(tiny_backbone()).eval()
    stock = Dinov2Model(model.config.stock_config(model.config.space.full)).eval()
    stock.load_state_dict(model.state_dict())
    batch = random_batch()
    for masks in (None, batch["masks"]):
        expected = stock(batch["global_crops"], bool_masked_pos=masks)
        output = model(batch["global_crops"], bool_masked_pos=masks)
        assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
        assert torch.equal(output.pooler_output, expected.pooler_output)


def test_save_and_load(tmp_path):
    model = PoaViTModel(tiny_backbone()).eval()
    model.save_pretrained(tmp_path)
    for loaded in (AutoModel.from_pretrained(tmp_path), PoaViTModel.from_pretrained(tmp_path)):
        assert type(loaded) is PoaViTModel and loaded.config.space == model.config.space
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert type(AutoConfig.from_pretrained(tmp_path)) is PoaViTConfig


def test_hidden_states_tuples_and_copies():
    model = PoaViTModel(tiny_backbone()).eval()
    pixels = random_batch()["global_crops"]
    for size, depth, width in ((None, 3, 32), (SubNetwork(16, 2), 2, 16)):
        states = model(pixels, sub_network=size, output_hidden_states=True).hidden_states
        assert len(states) == depth + 1 and states[0].shape == (8, 17, width)
        assert isinstance(model(pixels, sub_network=size, return_dict=False), tuple)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(pixels, sub_network=size)[0], model(pixels, sub_network=size)[0])


def test_other_image_sizes():
    model = PoaViTModel(tiny_backbone()).eval()
    assert model(torch.randn(1, 3, 48, 24), sub_network=SubNetwork(16, 1)).last_hidden_state.shape == (1, 19, 16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 100}, "hidden_size 100 is not a multiple of num_attention_heads 16"),
        ({"min_hidden_size": 400}, "min_hidden_size 400 is not a positive multiple of 64"),
        ({"hidden_size_step": 100}, "hidden_size_step 100 is not a positive multiple of 64"),
        ({"hidden_size_step": 384, "min_hidden_size": 384}, "Steps of 384"),
        ({"min_hidden_size": 2048}, "min_hidden_size 2048 is larger than hidden_size 1024"),
        ({"min_num_hidden_layers": 25}, "min_num_hidden_layers 25 is larger"),
        ({"min_num_hidden_layers": 0}, "min_num_hidden_layers is 0: give a whole number of at least 1"),
        ({"image_size": [32, 64]}, "image_size must be one number"),
        ({"patch_size": [8, 16]}, "patch_size must be one number"),
        ({"patch_size": 0}, "patch_size is 0: give a whole number of at least 1"),
        ({"mlp_ratio": 2.5}, "mlp_ratio must be a whole number"),
        ({"head_dim": 16}, "head_dim cannot be set"),
        ({"sampling_bias": 0}, "sampling_bias is 0: give a number of at least 1 and below 100"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0: give a number of at least 0 and below 1"),
        ({"hidden_act": "foo"}, "hidden_act 'foo' is not an activation"),
        ({"image_size": 225}, "image_size 225 is not a multiple of patch_size 16: use 224 or 240"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0: give a whole number of at least 1"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PoaViTConfig(**fields)


def test_smallest_size_follows_the_full_one_by_default():
    assert PoaViTConfig().space.smallest == SubNetwork(384, 12)
    assert PoaViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=4).space.smallest == SubNetwork(16, 2)
    assert len(PoaViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1).space) == 1


def test_stochastic_depth_acts_in_training_only():
    model = PoaViTModel(tiny_backbone(drop_path_rate=0.5))
    pixels = random_batch()["global_crops"]
    for size in (None, SubNetwork(16, 2)):
        model.train()
        assert not torch.equal(model(pixels, sub_network=size)[0], model(pixels, sub_network=size)[0])
        model.eval()
        assert torch.equal(model(pixels, sub_network=size)[0], model(pixels, sub_network=size)[0])


@pytest.mark.parametrize(
    "fields",
    [{"use_swiglu_ffn": True}, {"qkv_bias": False}, {"mlp_ratio": 2.0}, {"num_channels": 1}, {"hidden_act": "relu"}],
)
def test_other_architectures_extract_to_the_bit(fields):
    model = PoaViTModel(tiny_backbone(**fields)).eval()
    pixels = torch.randn(2, model.config.num_channels, 32, 32)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = model.to(dtype)
        for size in model.config.space:
            extracted = model.extract(size)
            assert extracted.dtype == dtype
            assert torch.equal(extracted(pixels)[0], model(pixels, sub_network=size)[0])


def test_sizes_are_given_as_values_names_or_text():
    model = PoaViTModel(tiny_backbone()).eval()
    pixels = random_batch()["global_crops"]
    expected = model(pixels, sub_network=SubNetwork(16, 1))[0]
    for size in ("small", "16x1"):
        assert torch.equal(model(pixels, sub_network=size)[0], expected)
    with pytest.raises(ValueError, match="give a SubNetwork"):
        model(pixels, sub_network=3)


def test_outputs_asked_for_in_the_configuration():
    model = PoaViTModel(tiny_backbone())
    model.set_attn_implementation("eager")
    model.config.output_hidden_states = model.config.output_attentions = True
    output = model(random_batch()["global_crops"], sub_network=SubNetwork(16, 2))
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2
