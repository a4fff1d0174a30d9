"""Gradients summed part by part, beside autograd's own of the whole."""

import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

from poa_hf import PoaForPreTraining, SubNetwork
from poa_hf.models import modeling_poa_pretraining
from poa_hf.objective.early_gradients import GradientSums, differentiated
from poa_hf.slicing import SlicedModel, slice_plan, without_storage

from ..conftest import random_batch, tiny_config

SIZE = SubNetwork(16, 2)


@pytest.fixture
def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4)).double()


def parts_of(gradients, layers, inputs):
    """A loss of three parts on shared features, one of which uses a parameter on its own."""
    with gradients.cut(layers[:2](inputs)) as (features,):
        total = gradients.add(layers[2](features).square().sum())
        total = total + gradients.add(features.exp().mean())
        total = total + gradients.add(layers[2].weight.sin().sum())
    return total, len(features)


def test_sums_are_the_gradient_of_the_sum(two_layers):
    inputs = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    wanted = [inputs, *two_layers.parameters()]
    loss, num_rows = differentiated(
        lambda gradients, inputs: parts_of(gradients, two_layers, inputs), [inputs], two_layers.parameters()
    )
    assert num_rows == 7
    features = two_layers[:2](inputs)
    weight = two_layers[2].weight
    whole = two_layers[2](features).square().sum() + features.exp().mean() + weight.sin().sum()
    torch.testing.assert_close(loss, whole)
    expected = torch.autograd.grad(whole, wanted)
    torch.testing.assert_close(torch.autograd.grad(loss, wanted, retain_graph=True), expected)
    twice = torch.autograd.grad(2 * loss, wanted)
    torch.testing.assert_close(twice, [2 * gradient for gradient in expected])


def test_where_no_gradient_is_wanted_the_loss_is_the_same(two_layers):
    inputs = torch.randn(7, 6, dtype=torch.float64)

    def total():
        return differentiated(lambda gradients: parts_of(gradients, two_layers, inputs), [], two_layers.parameters())[0]

    with_gradient = total()
    with torch.no_grad():
        without = total()
    two_layers.requires_grad_(False)
    frozen = total()
    assert with_gradient.requires_grad and not without.requires_grad and not frozen.requires_grad
    assert with_gradient == without == frozen


def test_what_no_part_reaches_gets_zeros():
    reached, unreached = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)

    def loss(gradients):
        return gradients.add(reached.sum()), None

    differentiated(loss, [], [reached, unreached])[0].backward()
    assert torch.equal(reached.grad, torch.ones(3)) and torch.equal(unreached.grad, torch.zeros(2))


def test_one_tensor_as_several_gradients_is_not_added_to_in_place():
    """Of a + b, autograd hands out the same tensor twice."""
    a, b = (torch.zeros(3, requires_grad=True) for _ in range(2))
    gradients = GradientSums([a, b])
    for scale in (1.0, 10.0, 100.0):
        gradients.add(a + b, torch.full((3,), scale))
        gradients.add(a.sum())
    for_a, for_b = gradients.totals()
    assert for_a.tolist() == [114.0] * 3 and for_b.tolist() == [111.0] * 3


@pytest.mark.parametrize("by_full_model_too", [False, True])
def test_gradients_of_slices_reach_the_leading_entries(two_layers, by_full_model_too):
    with without_storage():
        small = nn.Sequential(nn.Linear(6, 3), nn.GELU(), nn.Linear(3, 2)).double()
    plan = slice_plan(two_layers, small)
    inputs, others = torch.randn(2, 7, 6, dtype=torch.float64)
    parameters = list(two_layers.parameters())

    def terms(sliced):
        yield sliced(inputs).square().sum()
        yield sliced(others).exp().sum()
        if by_full_model_too:
            yield two_layers(inputs).square().sum()
            yield two_layers(others).exp().sum()

    def loss(gradients):
        sliced = gradients.on_leaves(SlicedModel(small, two_layers, plan))
        return sum(gradients.add(term) for term in terms(sliced)), None

    whole = sum(terms(SlicedModel(small, two_layers, plan)))
    found, _ = differentiated(loss, [], parameters)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(torch.autograd.grad(found, parameters), torch.autograd.grad(whole, parameters))


@pytest.mark.parametrize("left", [0, 2], ids=["one process", "several"])
def test_activations_of_one_pass_alone_exist_at_a_time(left, monkeypatch):
    """No feature map of a student's pass outlives it, but for those of the last one where several processes average
    gradients, which the backward pass frees."""
    monkeypatch.setattr(modeling_poa_pretraining, "several_processes", lambda: left > 0)
    model = PoaForPreTraining(tiny_config()).train()
    alive, counts = weakref.WeakSet(), []

    class Kept:
        """Lives as long as the graph that it is hooked to."""

    def watch(module, inputs, output):
        if torch.is_grad_enabled():
            kept = Kept()
            output.register_hook(lambda gradient, kept=kept: None)
            alive.add(kept)
            counts.append(len(alive))

    students = model.student, model.student.sliced(SIZE).plain
    hooks = [block.mlp.register_forward_hook(watch) for student in students for block in student.encoder.layer]
    output = model(**random_batch(), sub_network=SIZE, teacher_temperature=0.05)
    for hook in hooks:
        hook.remove()
    assert counts == [1, 2, 3, 1, 2, 3, 1, 2, 1, 2] and len(alive) == left, (
        "3 and 2 blocks, of global and of local crops"
    )
    output.loss.backward()
    del output
    assert not alive


def test_hooks_on_modules_see_the_backward_passes():
    model = PoaForPreTraining(tiny_config()).train()
    seen = []
    names = {"student.encoder.layer.2.mlp", "student_head"}
    for name in names:
        model.get_submodule(name).register_full_backward_hook(lambda *_, name=name: seen.append(name))
    with FlopCounterMode(display=False) as counter:
        model(**random_batch(), sub_network=SIZE, teacher_temperature=0.05).loss.backward()
    assert counter.get_total_flops() > 0 and set(seen) == names


def test_hooks_on_parameters_get_the_whole_gradient_once():
    batch, seen, gradients = random_batch(), [], []
    for scale in (None, 2):
        torch.manual_seed(0)
        model = PoaForPreTraining(tiny_config()).train()
        for parameter in model.parameters():
            if scale and parameter.requires_grad:
                parameter.register_hook(lambda gradient: seen.append(gradient) or 2 * gradient)
        model(**batch, sub_network=SIZE, teacher_temperature=0.05).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert len(seen) == len(gradients[0])
    torch.testing.assert_close(gradients[1], [2 * gradient for gradient in gradients[0]])


@pytest.mark.parametrize("made", [lambda x: x[..., :16, :16].clone(), lambda x: interpolate(x, size=(16, 16)).square()])
def test_gradients_reach_the_crops_and_what_they_were_made_of(made):
    torch.manual_seed(0)
    model, batch = PoaForPreTraining(tiny_config()).train(), random_batch()
    image = batch["global_crops"].clone().requires_grad_()
    crops = [image.detach().requires_grad_(), made(image).detach().requires_grad_()]

    def loss(global_crops, local_crops):
        batch.update(global_crops=global_crops, local_crops=local_crops)
        return model(**batch, sub_network=SIZE, teacher_temperature=0.05).loss

    for_global, for_local = torch.autograd.grad(loss(*crops), crops)
    (chained,) = torch.autograd.grad(made(image), image, for_local)
    assert for_global.abs().sum() > 0 and for_local.abs().sum() > 0
    (found,) = torch.autograd.grad(loss(image, made(image)), image)
    torch.testing.assert_close(found, for_global + chained)
