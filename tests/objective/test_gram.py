"""Gram anchoring, against the equation in float64."""

import pytest
import torch

from poa_hf import PoaForPreTraining
from poa_hf.objective.distillation import DistillationSpec
from poa_hf.objective.gram import gram_loss

from ..conftest import random_batch, tiny_config
from .test_distillation import SPEC, teacher_of


def equation(features, anchors):
    """The mean over images and pairs of patches of the squared difference of their cosines, pair by pair."""
    terms = []
    for i in range(features.shape[1]):
        for j in range(features.shape[1]):
            ours, theirs = (
                (each[:, i] * each[:, j]).sum(-1) / (each[:, i].norm(dim=-1) * each[:, j].norm(dim=-1))
                for each in (features.double(), anchors.double())
            )
            terms.append((ours - theirs) ** 2)
    return torch.stack(terms).mean()


@pytest.mark.parametrize("width", [7, 12], ids=["same width", "other width"])
def test_the_loss_and_its_gradient_follow_the_equation(width):
    features, anchors = 3 * torch.randn(2, 5, 7, dtype=torch.float64), torch.randn(2, 5, width, dtype=torch.float64)
    features.requires_grad_()
    expected = equation(features, anchors)
    slope = torch.autograd.grad(expected, features)[0]
    loss = gram_loss(features, anchors)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss, features)[0], slope, rtol=1e-9, atol=1e-12)
    single = gram_loss(features.detach().bfloat16(), anchors.float())
    assert single.dtype == torch.float32 and single.item() == pytest.approx(expected.item(), rel=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # products are not rounded
        assert gram_loss(features.float(), anchors.float()).item() == pytest.approx(expected.item(), rel=1e-5)


def test_scale_and_rotations_of_the_channels_do_not_matter():
    features = torch.randn(2, 6, 8, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    assert gram_loss(features, 5 * features @ rotation).item() == pytest.approx(0, abs=1e-20)
    assert gram_loss(features, features.flip(1)).item() > 0.01


def model_with(gram_weight: float, distilled: str | None = None) -> PoaForPreTraining:
    torch.manual_seed(0)
    model = PoaForPreTraining(tiny_config(gram_weight=gram_weight))
    if distilled is not None:
        model.distil_from(DistillationSpec(**{**SPEC, "loss": distilled, "patch_features": 12}))
    return model


def gradients(model, loss):
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize(
    "distilled, pack", [(None, False), (None, True), ("features", False), ("features", True), ("prototypes", True)]
)
def test_it_is_added_to_the_loss_of_both_students(distilled, pack):
    """The difference that a weight makes is that of the equation, of models that are whole or sliced."""
    batch, size = random_batch(), tiny_config().backbone_config.space.smallest
    torch.manual_seed(2)
    anchors = torch.randn(8, 16, 20)
    plain, anchored = model_with(0.0, distilled), model_with(1.5, distilled)
    arguments = dict(sub_network=size, teacher_temperature=0.07, pack_crops=pack)
    if distilled is not None:
        arguments["teacher_features"] = teacher_of(DistillationSpec.read(plain.config.distillation))
    before = plain(**batch, **arguments)
    output = anchored(**batch, **arguments, gram_features=anchors)
    losses, found, without = output.losses, gradients(anchored, output.loss), gradients(plain, before.loss)

    student, masks = plain.student, batch["masks"] if distilled is None else None
    expected = 0.0
    for share, sub_network in ((0.8, None), (0.2, size)):
        _, tokens = student.image_tokens(student(batch["global_crops"], masks, sub_network=sub_network))
        expected = expected + 1.5 * share * equation(tokens, anchors)
    assert losses["gram_loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert (output.loss - before.loss).item() == pytest.approx(expected.item(), rel=1e-3)
    for name, value in before.losses.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-6)
    added = gradients(plain, expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, without[name] + added.get(name, 0), rtol=2e-3, atol=1e-5, msg=name)


def test_features_and_a_weight_belong_together():
    batch = dict(**random_batch(), sub_network="16x1", teacher_temperature=0.07)
    batch["sub_network"] = tiny_config().backbone_config.space.smallest
    with pytest.raises(ValueError, match="gram_features are given if, and only if"):
        model_with(1.0)(**batch)
    with pytest.raises(ValueError, match="gram_features are given if, and only if"):
        model_with(0.0)(**batch, gram_features=torch.randn(8, 16, 20))
    with pytest.raises(ValueError, match="gram_weight"):
        tiny_config(gram_weight=-1)


def test_a_frozen_backbone_gets_no_gradient_of_it():
    batch, size = random_batch(), tiny_config().backbone_config.space.smallest
    model = model_with(1.0)
    output = model(
        **batch, sub_network=size, teacher_temperature=0.07, freeze_backbone=True, gram_features=torch.randn(8, 16, 20)
    )
    output.loss.backward()
    assert output.losses["gram_loss"] > 0 and all(
        p.grad is None or not p.grad.any() for p in model.student.parameters()
    )
