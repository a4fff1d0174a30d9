"""The slicing rule, against explicit index arithmetic."""

import pytest
import torch
from torch import nn
from transformers import Dinov2Model

from poa_hf import PoaForPreTraining, PoaViTModel, SubNetwork
from poa_hf.elastic import block_indices
from poa_hf.models.activation_checkpointing import enable_activation_checkpointing
from poa_hf.slice_rules import SliceRules
from poa_hf.slicing import slice_plan, sliced_tensors

from .conftest import random_batch, tiny_backbone, tiny_config


def test_tensors_are_leading_slices_times_alpha():
    model = PoaViTModel(tiny_backbone())
    size = SubNetwork(16, 2)
    extracted = model.extract(size)
    full = dict(model.named_parameters())
    kept = block_indices(3, 2)
    for name, tensor in extracted.named_parameters():
        source = name
        if name.startswith("encoder.layer."):
            index, _, rest = name.removeprefix("encoder.layer.").partition(".")
            source = f"encoder.layer.{kept[int(index)]}.{rest}"
        expected = full[source][tuple(slice(n) for n in tensor.shape)]
        linear = any(part in name for part in ("_proj.weight", "fc1.weight", "fc2.weight"))
        torch.testing.assert_close(tensor, expected * 2 if linear else expected, rtol=0, atol=0, msg=name)


def test_gradients_reach_the_slices_and_nothing_else():
    model = PoaViTModel(tiny_backbone())
    size = SubNetwork(16, 2)
    pixels = random_batch()["global_crops"]
    model(pixels, sub_network=size).last_hidden_state.square().sum().backward()
    small = model.extract(size).requires_grad_()
    small(pixels).last_hidden_state.square().sum().backward()
    weight = model.encoder.layer[2].mlp.fc1.weight  # the second of two kept blocks
    torch.testing.assert_close(weight.grad[:64, :16], 2 * small.encoder.layer[1].mlp.fc1.weight.grad)
    assert weight.grad[64:].abs().sum() == 0 and weight.grad[:, 16:].abs().sum() == 0
    assert model.encoder.layer[1].mlp.fc1.weight.grad is None  # dropped


def test_grouped_axes_are_cut_group_by_group():
    full, plain = nn.Sequential(nn.Linear(12, 6, bias=False)), nn.Sequential(nn.Linear(8, 4, bias=False))
    (tensor,) = sliced_tensors(full, slice_plan(full, plain, SliceRules(grouped={r"^0\.": 4}))).values()
    columns = [0, 1, 3, 4, 6, 7, 9, 10]
    torch.testing.assert_close(tensor, full[0].weight[:4][:, columns] * 1.5)
    gradient = torch.randn(4, 8)
    tensor.backward(gradient)
    expected = torch.zeros(6, 12)
    expected[:4, columns] = 1.5 * gradient
    torch.testing.assert_close(full[0].weight.grad, expected)


def test_grouped_axes_of_unscaled_tensors_are_cut_too():
    full, plain = nn.Sequential(nn.LayerNorm(12)), nn.Sequential(nn.LayerNorm(8))
    nn.init.normal_(full[0].weight)
    tensors = sliced_tensors(full, slice_plan(full, plain, SliceRules(grouped={r"^0\.": 4})))
    torch.testing.assert_close(tensors["0.weight"], full[0].weight[[0, 1, 3, 4, 6, 7, 9, 10]])


def test_an_uncut_tensor_is_not_copied():
    model = PoaViTModel(tiny_backbone())
    sliced = model.sliced(SubNetwork(32, 2))
    assert sliced.tensors["encoder.layer.1.mlp.fc1.weight"] is model.encoder.layer[2].mlp.fc1.weight


def test_running_a_sub_network_leaves_no_trace():
    model = PoaViTModel(tiny_backbone()).eval()
    names, before = list(model.state_dict()), {n: t.clone() for n, t in model.state_dict().items()}
    pixels = random_batch()["global_crops"]
    first = model(pixels).last_hidden_state
    for size in model.config.space:
        model(pixels, sub_network=size)
    assert list(model.state_dict()) == names == [n for n, _ in model.named_parameters()]
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert torch.equal(model(pixels).last_hidden_state, first)


@pytest.mark.parametrize("shape", [(16, 1), (16, 3), (32, 2)])
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_activation_checkpointing_gives_the_same_gradients(shape, drop_path_rate):
    model = PoaForPreTraining(tiny_config(tiny_backbone(drop_path_rate=drop_path_rate))).train()

    def gradients():
        torch.manual_seed(3)
        model.zero_grad()
        model(**random_batch(), sub_network=SubNetwork(*shape), teacher_temperature=0.05).loss.backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    plain = gradients()
    enable_activation_checkpointing(model.student)
    checkpointed = gradients()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_attention_implementation_and_mode_follow_the_full_model():
    model = PoaViTModel(tiny_backbone())
    pixels, size = random_batch()["global_crops"], SubNetwork(16, 1)
    expected = model.eval()(pixels, sub_network=size).last_hidden_state
    model.set_attn_implementation("eager")
    output = model(pixels, sub_network=size, output_attentions=True)
    torch.testing.assert_close(output.last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    assert output.attentions[0].shape == (8, 2, 17, 17)


def test_sizes_outside_the_space_are_refused():
    model = PoaViTModel(tiny_backbone())
    for call in (model.extract, lambda size: model(random_batch()["global_crops"], sub_network=size)):
        with pytest.raises(ValueError, match="nearest are 16x1"):
            call(SubNetwork(12, 1))


@pytest.mark.slow  # test_contract.py does the same through the configuration's own space
def test_wrapped_and_quantised_layers_are_refused_in_a_sentence():
    class Adapter(nn.Module):
        def __init__(self, base_layer: nn.Linear):
            super().__init__()
            self.base_layer, self.lora_A = base_layer, nn.Linear(base_layer.in_features, 2, bias=False)

        def forward(self, x):
            return self.base_layer(x)

    pixels = torch.randn(1, 3, 32, 32)
    wrapped = PoaViTModel(tiny_backbone())
    block = wrapped.encoder.layer[0].mlp
    block.fc1 = Adapter(block.fc1)
    quantised = PoaViTModel(tiny_backbone())
    fc1 = quantised.encoder.layer[0].mlp.fc1
    fc1.weight = nn.Parameter(torch.zeros_like(fc1.weight, dtype=torch.int8), requires_grad=False)
    for model in (wrapped, quantised):
        with pytest.raises(ValueError, match=r"mlp.fc1.weight is not there as a plain weight, .* merge adapters"):
            model(pixels, sub_network="16x2")
        with pytest.raises(ValueError, match="plain weight"):
            model.extract("16x2")
    assert wrapped(pixels).pooler_output.isfinite().all()  # the full size works


@pytest.mark.slow
def test_every_one_of_143_sizes_extracts_to_the_bit():
    config = tiny_backbone(
        hidden_size=64, num_attention_heads=16, min_hidden_size=24, num_hidden_layers=24, min_num_hidden_layers=12
    )
    assert len(config.space) == 143
    model = PoaViTModel(config).eval()
    pixels = random_batch(num_images=1)["global_crops"]
    with torch.inference_mode():
        for size in config.space:
            extracted = model.extract(size)
            assert type(extracted) is Dinov2Model and extracted.config.hidden_size == size.width
            ours = model(pixels, sub_network=size).last_hidden_state
            assert torch.equal(extracted(pixels).last_hidden_state, ours), size


def test_slices_can_be_differentiated_twice_and_by_torch_func():
    full, plain = nn.Linear(6, 6, bias=False).double(), nn.Linear(4, 4, bias=False)
    plan = slice_plan(full, plain)

    def cut(weight):
        return plan["weight"].cut_from({"weight": weight})

    weight = full.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(cut, weight) and torch.autograd.gradgradcheck(cut, weight)
    gradient = torch.func.grad(lambda w: cut(w).square().sum())(weight.detach())
    assert gradient[:4, :4].abs().min() > 0 and gradient[4:].abs().sum() == 0
