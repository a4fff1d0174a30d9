"""The losses of learning from a frozen teacher, against the equations in float64."""

import pytest
import torch
from torch.nn import functional as F

from poa_hf import PoaForPreTraining
from poa_hf.objective.distillation import DistillationSpec
from poa_hf.objective.feature_matching import TeacherFeatures, matching_loss

from ..conftest import random_batch, tiny_config

SPEC = dict(teacher="theirs", loss="features", metric="cosine", image_features=12, patch_features=10)


def distilled(**spec) -> PoaForPreTraining:
    torch.manual_seed(0)
    model = PoaForPreTraining(tiny_config())
    model.distil_from(DistillationSpec(**{**SPEC, **spec}))
    return model


def teacher_of(spec: DistillationSpec, num_images: int = 8) -> TeacherFeatures:
    patches = torch.randn(num_images, 16, spec.patch_features) if spec.patch_features else None
    return TeacherFeatures(torch.randn(num_images, spec.image_features), patches)


def distances(features, targets, metric):
    """The equations, element by element in float64."""
    features, targets = features.double(), targets.double()
    if metric == "cosine":
        return 1 - (features * targets).sum(-1) / (features.norm(dim=-1) * targets.norm(dim=-1))
    targets = (targets - targets.mean(-1, keepdim=True)) / (targets.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    difference = (features - targets).abs()
    return torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean(-1)


@pytest.mark.parametrize("metric", ["cosine", "smooth_l1"])
def test_distances_follow_their_equations(metric):
    features, targets = torch.randn(5, 4, 7), 30 * torch.randn(5, 4, 7)
    expected = distances(features, targets, metric)
    torch.testing.assert_close(matching_loss(features, targets, metric).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "smooth_l1"])
@pytest.mark.parametrize("patches", [10, 0])
def test_matched_features_of_both_students(metric, patches):
    """Loss and gradients are those of projected features of models that are extracted or whole."""
    model = distilled(metric=metric, patch_features=patches)
    batch, teacher = random_batch(), teacher_of(DistillationSpec.read(model.config.distillation))
    size = model.config.backbone_config.space.smallest
    output = model(**batch, sub_network=size, teacher_temperature=0.07, teacher_features=teacher)
    output.loss.backward()
    projections, student = model.distillation.projections, model.student
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    expected = 0.0
    for width, share, sub_network in ((32, 0.8, None), (size.width, 0.2, size)):
        scale = 32 / width
        images, tokens = student.image_tokens(student(batch["global_crops"], sub_network=sub_network))
        local, _ = student.image_tokens(student(batch["local_crops"], sub_network=sub_network))
        image = projections.images
        projected = F.linear(images, scale * image.weight[:, :width], image.bias)
        projected_local = F.linear(local, scale * image.weight[:, :width], image.bias)
        on_global = distances(projected, teacher.images, metric).mean()
        on_local = torch.stack(
            [
                distances(projected_local[i], teacher.images[view * 4 + i % 4], metric)
                for i in range(8)
                for view in (0, 1)
            ]
        ).mean()
        # 2 local views: four terms of local crops, and two global ones
        expected = expected + share * (2 * on_global + 4 * on_local) / 6
        if patches:
            weight = scale * projections.patches.weight[:, :width]
            seen = F.linear(tokens, weight, projections.patches.bias)
            expected = expected + share * distances(seen, teacher.patches, metric).mean()
    koleo = output.losses["koleo_loss"] * 2
    torch.testing.assert_close(output.loss.double(), expected + koleo, rtol=1e-5, atol=1e-6)
    model.config.koleo_weight = 0
    model(**batch, sub_network=size, teacher_temperature=0.07, teacher_features=teacher).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad.float(), rtol=1e-3, atol=1e-6, msg=name)
    assert any(name.startswith("distillation.") for name in found)
    assert not any(name.startswith(("student_head", "teacher")) for name in found)


def test_heads_of_the_teacher_learn_and_their_average_makes_the_targets():
    model = distilled(loss="prototypes", patch_features=12)
    spec = DistillationSpec.read(model.config.distillation)
    batch, teacher = random_batch(), teacher_of(spec)
    size = model.config.backbone_config.space.smallest

    def loss():
        return model(**batch, sub_network=size, teacher_temperature=0.07, teacher_features=teacher)

    output = loss()
    output.loss.backward()
    heads, averages = model.distillation.heads, model.distillation.teacher_heads
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in heads.parameters())
    assert not any(p.requires_grad for p in [*averages.parameters(), *model.teacher.parameters()])
    assert output.losses["teacher_head_loss"] > 0 and output.teacher_features is not None
    # what the heads learn does not change what the students are given, until their average follows
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    after = loss()
    names = [name for name in output.losses if name != "teacher_head_loss"]
    assert all(torch.equal(output.losses[name], after.losses[name]) for name in names)
    assert after.losses["teacher_head_loss"] != output.losses["teacher_head_loss"]
    model.update_teacher(momentum=0.5)
    followed = loss()
    assert not torch.equal(output.losses["dino_global_crops_loss_0"], followed.losses["dino_global_crops_loss_0"])


def test_students_of_a_distillation_see_all_patches():
    model = distilled(loss="prototypes", patch_features=12)
    seen = []
    original = model.student.forward
    model.student.forward = lambda *args, bool_masked_pos=None, **rest: (
        seen.append(bool_masked_pos), original(*args, bool_masked_pos=bool_masked_pos, **rest),
    )[1]  # fmt: skip
    teacher = teacher_of(DistillationSpec.read(model.config.distillation))
    model(**random_batch(), sub_network=model.config.backbone_config.space.full, teacher_temperature=0.07,
          teacher_features=teacher)  # fmt: skip
    assert seen and all(masks is None for masks in seen)


@pytest.mark.parametrize("loss", ["features", "prototypes"])
def test_packed_crops_give_the_same_loss(loss):
    model = distilled(loss=loss, patch_features=12)
    teacher = teacher_of(DistillationSpec.read(model.config.distillation))
    size = model.config.backbone_config.space.smallest
    found = []
    for packed in (False, True):
        output = model(**random_batch(), sub_network=size, teacher_temperature=0.07, teacher_features=teacher,
                       pack_crops=packed)  # fmt: skip
        output.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append({"loss": output.loss.detach(), **output.losses, **gradients})
        model.zero_grad()
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_saved_model_holds_what_learns_beside_the_students(tmp_path):
    for spec in (dict(), dict(loss="prototypes", patch_features=0)):
        model = distilled(**spec)
        model.save_pretrained(tmp_path)
        loaded = PoaForPreTraining.from_pretrained(tmp_path)
        assert loaded.config.distillation == model.config.distillation
        state = model.state_dict()
        assert any(name.startswith("distillation.") for name in state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
        loaded.distil_from(None)
        assert "distillation" not in loaded.config.to_dict() and loaded.student_head[0].mlp[0].weight.requires_grad


def test_features_are_given_if_and_only_if_they_are_needed(tiny_model):
    options = dict(sub_network=tiny_model.config.backbone_config.space.full, teacher_temperature=0.07)
    with pytest.raises(ValueError, match="if, and only if"):
        distilled()(**random_batch(), **options)
    with pytest.raises(ValueError, match="if, and only if"):
        tiny_model(**random_batch(), **options, teacher_features=TeacherFeatures(torch.randn(8, 12)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(loss="both"), "loss of a distillation is 'both'"),
        (dict(metric="l2"), "metric of a distillation is 'l2'"),
        (dict(image_features=0), "no size"),
        (
            dict(loss="prototypes", image_features=8, patch_features=6),
            "image features of 8 channels and patch features",
        ),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DistillationSpec(**{**SPEC, **fields})


def test_an_elastic_teacher_is_the_runs_own():
    model = PoaForPreTraining(tiny_config(elastic_teacher=True))
    spec = DistillationSpec(**SPEC)
    with pytest.raises(ValueError, match="leave it out, or the foreign teacher"):
        model.distil_from(spec)
    assert model.distillation is None and model.config.distillation is None
