"""The three branches in one forward: what must hold beyond the golden values."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, Dinov2Config

from poa_hf import PoaConfig, PoaForPreTraining, SubNetwork
from poa_hf.models.complete import load_complete

from ..conftest import random_batch, tiny_config

SIZE = SubNetwork(16, 2)


def test_total_from_the_equations(tiny_model):
    """A direct reading of the method: explicit loops over heads, views and students."""
    batch, tau, lam = random_batch(num_images=3, num_local=2), 0.05, 0.8
    output = tiny_model(**batch, sub_network=SIZE, teacher_temperature=tau)
    masks = batch["masks"]

    def features(backbone, heads, hide):
        glob = backbone(batch["global_crops"], bool_masked_pos=masks if hide else None).last_hidden_state
        loc = backbone(batch["local_crops"]).last_hidden_state[:, 0]
        kinds = [logits_of(kind, heads) for kind in (glob[:, 0], loc, glob[:, 1:][masks])]
        return list(zip(*kinds, strict=True)), glob[:, 0]

    def logits_of(features, heads):
        prototypes = (
            tiny_model.teacher_head if heads is tiny_model.teacher_head else tiny_model.student_head
        ).prototypes
        return [head @ each.weight.T for head, each in zip(heads(features), prototypes, strict=True)]

    def sinkhorn(logits):
        q = (logits / tau).exp().T
        for _ in range(3):
            q = q / q.sum(dim=1, keepdim=True) / q.shape[0]
            q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
        return (q * q.shape[1]).T

    def ce(target, logits):
        return -(target * torch.log_softmax(logits / 0.1, dim=-1)).sum(-1)

    teacher, _ = features(tiny_model.teacher, tiny_model.teacher_head, hide=False)
    small = tiny_model.student.extract(SIZE)
    heads = tiny_model.student_head.sliced(16)
    intact, intact_cls = features(tiny_model.student, tiny_model.student_head, hide=True)
    elastic, elastic_cls = features(small, heads, hide=True)
    total = 0.0
    for h in range(2):
        q, q_patch = sinkhorn(teacher[h][0]), sinkhorn(teacher[h][2])
        for weight, (glob, loc, patch) in ((lam, intact[h]), (1 - lam, elastic[h])):
            cross = ce(q[3:], glob[:3]).mean() + ce(q[:3], glob[3:]).mean()
            for view in loc.split(3):
                cross += ce(q[:3], view).mean() + ce(q[3:], view).mean()
            owner = masks.nonzero()[:, 0]
            masked = sum(ce(q_patch, patch)[owner == i].mean() for i in range(6) if masks[i].any()) / 6
            total += weight * (cross / 6 + masked) / 2
        same = sum(ce(torch.softmax(intact[h][i] / 0.1, -1), elastic[h][i]).mean() for i in (0, 1))
        total += (1 - lam) * same / 2
    for cls in (intact_cls, elastic_cls):
        for view in cls.split(3):
            unit = torch.nn.functional.normalize(view, dim=-1)
            distance = torch.cdist(unit, unit) + 10 * torch.eye(3)
            total += 0.1 * -distance.min(dim=1).values.log().mean() / 2
    torch.testing.assert_close(output.loss, total, rtol=1e-5, atol=1e-5)


def test_the_output_is_a_mapping_and_a_tuple_too(tiny_model):
    """Engines look for the loss among its values."""
    output = tiny_model(**random_batch(), sub_network=SIZE, teacher_temperature=0.05)
    assert output["loss"] is output.loss is output[0] is list(output.values())[0]
    assert output["losses"] is output.losses and list(output.losses)[-1] == "koleo_loss"
    assert output.teacher_features.shape == (2 * 4, 32)


def test_save_and_load_keeps_all_branches(tiny_model, tmp_path):
    with torch.no_grad():
        for parameter in tiny_model.teacher.parameters():
            parameter.mul_(0.5)
    tiny_model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    for loaded in (PoaForPreTraining.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert loaded.state_dict().keys() == tiny_model.state_dict().keys()
        assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in tiny_model.state_dict().items())
        assert not any(p.requires_grad for p in [*loaded.teacher.parameters(), *loaded.teacher_head.parameters()])
        assert all(p.requires_grad for p in [*loaded.student.parameters(), *loaded.student_head.parameters()])


def test_teacher_starts_equal_and_follows_the_student(tiny_model):
    pairs = [(tiny_model.teacher, tiny_model.student), (tiny_model.teacher_head, tiny_model.student_head)]
    for teacher, student in pairs:
        assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))
    with torch.no_grad():
        for parameter in tiny_model.student.parameters():
            parameter.add_(1)
    before = [p.clone() for p in tiny_model.teacher.parameters()]
    tiny_model.update_teacher(0.75)
    for old, new in zip(before, tiny_model.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)


@pytest.mark.parametrize("predict", [True, False])
@pytest.mark.parametrize("num_local", [0, 3])
@pytest.mark.parametrize("size", [SIZE, SubNetwork(32, 3)])
def test_every_student_parameter_gets_a_gradient(tiny_model, predict, num_local, size):
    batch = random_batch(num_local=num_local)
    tiny_model.train()
    tiny_model(**batch, sub_network=size, teacher_temperature=0.05, predict_masked_patches=predict).loss.backward()
    missing = [name for name, p in tiny_model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_without_masked_prediction_masks_do_not_matter(tiny_model):
    batch = random_batch()
    first = tiny_model(**batch, sub_network=SIZE, teacher_temperature=0.05, predict_masked_patches=False)
    batch["masks"] = ~batch["masks"]
    second = tiny_model(**batch, sub_network=SIZE, teacher_temperature=0.05, predict_masked_patches=False)
    assert torch.equal(first.loss, second.loss) and first.losses["ibot_loss_0"] == 0


def test_no_masked_patch_and_one_image_are_finite(tiny_model):
    batch = random_batch(num_images=1)
    batch["masks"][:] = False
    output = tiny_model(**batch, sub_network=SIZE, teacher_temperature=0.05)
    assert output.loss.isfinite() and output.losses["koleo_loss"] == 0


def test_bfloat16_autocast_is_close_to_float32(tiny_model):
    batch = random_batch()
    exact = tiny_model(**batch, sub_network=SIZE, teacher_temperature=0.05)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = tiny_model(**batch, sub_network=SIZE, teacher_temperature=0.05)
    assert rounded.loss.dtype == torch.float32
    torch.testing.assert_close(rounded.loss, exact.loss, rtol=0.02, atol=0.02)


def test_the_intact_student_alone_has_the_gradients_of_itself_as_elastic_student(tiny_model):
    """An elastic student of the full size repeats the intact one, and learns nothing from agreeing with itself."""
    batch, gradients = random_batch(), []
    for intact_weight in (0.8, 1.0):
        tiny_model.config.intact_weight = intact_weight
        tiny_model.zero_grad()
        output = tiny_model(**batch, sub_network=SubNetwork(32, 3), teacher_temperature=0.05)
        output.loss.backward()
        gradients.append({name: p.grad.clone() for name, p in tiny_model.named_parameters() if p.requires_grad})
    assert not any(name.startswith("distill") for name in output.losses)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_only_the_student_is_initialised_at_random():
    """Initialising takes most of the time in which a model is made, and the teacher is overwritten anyway."""

    class RandomTensors(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.places = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if str(func).startswith(("aten.uniform_", "aten.normal_")):
                self.places.add(args[0].data_ptr())
            return func(*args, **(kwargs or {}))

    with RandomTensors() as random:
        model = PoaForPreTraining(tiny_config())
    weights = [p for p in model.parameters() if p.ndim > 1 and p.std() > 0]
    assert {p.data_ptr() for p in weights} & random.places == {p.data_ptr() for p in weights if p.requires_grad}
    for ours, teachers in ((model.student, model.teacher), (model.student_head, model.teacher_head)):
        assert all(map(torch.equal, ours.state_dict().values(), teachers.state_dict().values()))


def test_statistics_are_shares(tiny_model):
    output = tiny_model(**random_batch(), sub_network=SIZE, teacher_temperature=0.05, return_statistics=True)
    assert output.statistics.keys() == {"teacher_entropy_0", "teacher_entropy_1", "prototype_use_0", "prototype_use_1"}
    assert all(0 <= value <= 1 for value in output.statistics.values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone_config": Dinov2Config()}, "plain 'dinov2'"),
        ({"num_prototypes": []}, r"num_prototypes is \[\]: give whole numbers of at least 2"),
        ({"intact_weight": 1.5}, "give a number of at least 0 and at most 1"),
        ({"koleo_weight": -1}, "koleo_weight is -1: give a number of at least 0"),
        ({"head_num_layers": 0}, "head_num_layers is 0: give a whole number of at least 1"),
        ({"backbone_config": {"use_mask_token": False}}, "masked prediction needs the mask token"),
        ({"student_temperature": 0.0}, "student_temperature is 0.0: give a number above 0"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PoaConfig(**fields)


def test_a_folder_without_all_parameters_is_refused(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: t for name, t in weights.items() if not name.startswith("teacher.")}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks .* parameters"):
        load_complete(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_complete(tmp_path)
    tiny_model.teacher.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a 'poa_vit' model"):
        load_complete(tmp_path)


def test_default_configuration_is_the_published_one():
    config = PoaConfig()
    assert config.num_prototypes == [8192, 16384, 32768, 65536] and len(config.backbone_config.space) == 143
    assert (config.intact_weight, config.koleo_weight, config.student_temperature) == (0.8, 0.1, 0.1)
    assert tiny_config().to_dict()["backbone_config"]["model_type"] == "poa_vit"


def test_the_warm_start_is_a_field_that_is_written_only_when_there_is_one(tmp_path):
    config = tiny_config()
    assert config.warm_started_from is None and "warm_started_from" not in config.to_dict()
    config.save_pretrained(tmp_path / "fresh")
    assert "warm_started_from" not in (tmp_path / "fresh" / "config.json").read_text()
    assert PoaConfig.from_pretrained(tmp_path / "fresh").warm_started_from is None
    config.warm_started_from = "source"
    config.save_pretrained(tmp_path / "warm")
    assert PoaConfig.from_pretrained(tmp_path / "warm").warm_started_from == "source"
