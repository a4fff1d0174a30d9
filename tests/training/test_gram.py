"""Runs with a Gram teacher: whose features it gives, and that a resumed run has the same one."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ConvNextConfig, ConvNextModel, Dinov2Config, Dinov2Model, TrainerCallback

from poa_hf import PoaForPreTraining, PoaResNetConfig, PoaSwinConfig, PoaTrainer
from poa_hf.objective.gram import gram_loss

from ..conftest import tiny_backbone, tiny_config
from .processes import in_processes
from .test_distillation import states
from .test_trainer import arguments, images, metrics


def anchored(seed: int = 0, backbone=None, **overrides) -> PoaForPreTraining:
    torch.manual_seed(seed)
    fields = dict(gram_weight=2.0, koleo_weight=0.0)
    return PoaForPreTraining(tiny_config(backbone, **{**fields, **overrides}))


def dinov2(seed: int = 5) -> Dinov2Model:
    torch.manual_seed(seed)
    config = Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    return Dinov2Model(config)


class Inputs(PoaTrainer):
    """Keeps what the model is given."""

    def compute_loss(self, model, inputs, return_outputs=False):
        self.inputs = inputs
        return super().compute_loss(model, inputs, return_outputs)


SLOW = pytest.mark.slow
FAMILIES = {
    "vit": tiny_backbone(),
    "swin": PoaSwinConfig(
        image_size=64, embed_dim=32, depths=[1, 1, 2, 1], num_heads=[2, 4, 8, 16], window_size=2, min_embed_dim=16,
        min_depths=[1, 1, 1, 1], drop_path_rate=0.0,
    ),
    "resnet": PoaResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32, 64, 128], depths=[1, 1, 2, 1], min_depths=[1, 1, 1, 1], base_width=8,
        min_base_width=4, num_groups=4,
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", ["vit", *(pytest.param(name, marks=SLOW) for name in ("swin", "resnet"))])
@pytest.mark.parametrize("factor", [None, pytest.param(2, marks=SLOW)])
def test_the_anchors_are_what_the_teacher_of_step_0_sees(tmp_path, family, factor):
    """Its last feature map of the students' crops; or of larger crops, each position the mean of what it covers."""
    backbone = FAMILIES[family]
    side = 32 if family == "vit" else 64
    model = anchored(backbone=backbone)
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    options = dict(max_steps=3, global_crop_size=side, local_crop_size=side // 2, learning_rate=0.02)
    options |= dict(teacher_momentum=0.5, gram_teacher_size=None if factor is None else factor * side)
    trainer = Inputs(model, arguments(tmp_path, **options), images())
    trainer.train()
    assert any(not torch.equal(model.teacher.state_dict()[name], before[name]) for name in before)
    model.teacher.load_state_dict(before)
    crops, found = trainer.inputs["global_crops"], trainer.inputs["gram_features"]
    with torch.no_grad():
        _, tokens = model.teacher.image_tokens(model.teacher(crops))
    assert crops.shape[-1] == side and found.shape == tokens.shape
    if factor is None:
        torch.testing.assert_close(found, tokens, rtol=1e-4, atol=1e-5)
    else:
        assert not torch.allclose(found, tokens, atol=1e-3)
    if family != "vit":  # four tokens stand for one position
        grid = found.unflatten(1, (side // 16, side // 16))
        assert torch.equal(grid[:, ::2, ::2], grid[:, 1::2, 1::2])
    assert all(line["gram_loss"] > 0 for line in metrics(tmp_path)[1:])


def test_larger_crops_show_the_same_without_changes_of_colour(tmp_path):
    """The teacher sees crops as they were cut, flipped as the students' ones, which are these made smaller."""
    options = dict(max_steps=1, gram_teacher_size=64)
    off = dict(color_jitter_probability=0.0, grayscale_probability=0.0, solarize_probability=0.0)
    off |= dict(blur_probability=[0.0, 0.0, 0.0])
    seen, teacher = [], dinov2()
    teacher.register_forward_pre_hook(lambda *given: seen.append(given[2]["pixel_values"]), with_kwargs=True)
    trainer = Inputs(anchored(), arguments(tmp_path, **options, **off), images(), gram_teacher=teacher)
    trainer.train()
    large, small = seen[-1], trainer.inputs["global_crops"]
    assert large.shape[-1] == 64 and small.shape[-1] == 32
    mean, std = (np.array(v)[:, None, None] for v in (trainer.args.image_mean, trainer.args.image_std))
    for ours, theirs in zip(small.numpy(), large.numpy(), strict=True):
        pixels = np.rint((theirs * std + mean) * 255).astype(np.uint8).transpose(1, 2, 0)
        expected = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)) / 255
        difference = np.abs(expected.transpose(2, 0, 1) - (ours * std + mean))
        assert difference.max() < 6 / 255 and difference.mean() < 0.5 / 255  # Pillow rounds in between, too


@pytest.mark.parametrize("bf16", [False, pytest.param(True, marks=SLOW)])
def test_resuming_is_exact(tmp_path, bf16):
    options = dict(max_steps=3, save_steps=1, gradient_accumulation_steps=2, bf16=bf16)
    whole, parts, elsewhere = tmp_path / "whole", tmp_path / "parts", tmp_path / "elsewhere"
    PoaTrainer(anchored(), arguments(whole, **options), images()).train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PoaTrainer(anchored(), arguments(parts, **options), images(), callbacks=[Stop()]).train()
    PoaTrainer(anchored(seed=9), arguments(parts, **options), images()).train(True)
    checkpoint = str(whole / "checkpoint-2")
    PoaTrainer(anchored(seed=8), arguments(elsewhere, **options), images()).train(checkpoint)
    a, b, c = states(whole, parts, elsewhere)
    assert all(torch.equal(a[name], b[name]) and torch.equal(a[name], c[name]) for name in a)
    record = json.loads((whole / "config.json").read_text())["gram_teacher"]
    assert record["teacher"] is None and record["image_size"] == 32
    # the first teacher, in float32, where the models of the run lie
    model = PoaForPreTraining.from_pretrained(whole)
    kept = type(model.teacher).from_pretrained(elsewhere / "gram_teacher").state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in anchored().teacher.state_dict().items())


@pytest.mark.slow
def test_what_is_resumed_has_the_same_gram_teacher(tmp_path):
    own, other, without = tmp_path / "own", tmp_path / "other", tmp_path / "without"
    options = dict(max_steps=2, save_steps=2)
    PoaTrainer(anchored(), arguments(own, **options), images()).train()
    PoaTrainer(anchored(), arguments(other, **options), images(), gram_teacher=dinov2()).train()
    PoaTrainer(anchored(gram_weight=0.0), arguments(without, **options), images()).train()
    assert not (other / "gram_teacher").exists() and not (without / "gram_teacher").exists()
    for folder, teacher, message in (
        (own, dinov2(), "whose Gram teacher is the run's own teacher, this one's is 'Dinov2Model'"),
        (other, None, "whose Gram teacher is 'Dinov2Model', this one's is the run's own teacher"),
        (other, dinov2(seed=6), "has other weights than before"),
        (without, None, "a run without gram_weight: start a new run from it with --init_from"),
    ):
        trainer = PoaTrainer(anchored(), arguments(folder, max_steps=4), images(), gram_teacher=teacher)
        with pytest.raises(ValueError, match=message):
            trainer.train(True)
        assert (folder / "checkpoint-2").exists()
    shutil.rmtree(own / "gram_teacher")
    with pytest.raises(ValueError, match="gram_teacher is not there, which holds the Gram teacher of the run"):
        PoaTrainer(anchored(), arguments(own, max_steps=4), images()).train(True)
    anchored(seed=3).teacher.save_pretrained(own / "gram_teacher")
    with pytest.raises(ValueError, match="has other weights than before"):
        PoaTrainer(anchored(), arguments(own, max_steps=4), images()).train(True)
    # an overwritten run starts with its own copy, and the weight may change when a run is resumed
    PoaTrainer(anchored(), arguments(own, overwrite_output_dir=True, **options), images()).train()
    PoaTrainer(anchored(gram_weight=1.0), arguments(own, max_steps=3), images()).train(True)


def test_what_does_not_fit_is_refused(tmp_path):
    plain = anchored(gram_weight=0.0)
    with pytest.raises(ValueError, match="gram_teacher is given, but no weight: add --model.gram_weight"):
        PoaTrainer(plain, arguments(tmp_path), images(), gram_teacher=dinov2())
    with pytest.raises(ValueError, match="gram_teacher_size is given, but no weight"):
        PoaTrainer(plain, arguments(tmp_path, gram_teacher_size=64), images())
    with pytest.raises(ValueError, match="gram_teacher_size 24 is below global_crop_size 32"):
        PoaTrainer(anchored(), arguments(tmp_path, gram_teacher_size=24), images())
    with pytest.raises(ValueError, match="gram_teacher_size 60 is not a multiple of 8 .*use 56 or 64"):
        PoaTrainer(anchored(), arguments(tmp_path, gram_teacher_size=60), images())
    small = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1]))
    forward = small.forward
    small.forward = lambda pixel_values: type(forward(pixel_values))(pooler_output=forward(pixel_values).pooler_output)
    with pytest.raises(ValueError, match="has no features of patches to anchor: give another gram_teacher"):
        PoaTrainer(anchored(), arguments(tmp_path), images(), gram_teacher=small)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["features", "prototypes"])
def test_a_foreign_teacher_can_teach_beside_it(tmp_path, loss):
    options = arguments(tmp_path, max_steps=2, foreign_teacher_loss=loss)
    PoaTrainer(anchored(), options, images(), foreign_teacher=dinov2()).train()
    assert metrics(tmp_path)[-1]["gram_loss"] > 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["distillation"]["teacher"] == "Dinov2Model" and config["gram_teacher"]["teacher"] is None


@pytest.mark.slow
def test_it_keeps_the_similarities(tmp_path):
    """Without the weight, the student's similarities of patches move away from those of step 0."""
    distances = {}
    for weight in (0.0, 50.0):
        model = anchored(gram_weight=weight)
        first = anchored().teacher
        options = dict(max_steps=40, learning_rate=0.1, masked_prediction_start_step=100)
        PoaTrainer(model, arguments(tmp_path / str(weight), **options), images()).train()
        crops = torch.randn(8, 3, 32, 32)
        with torch.no_grad():
            ours, theirs = (each.eval()(crops).last_hidden_state[:, 1:] for each in (model.student, first))
        distances[weight] = gram_loss(ours, theirs).item()
    assert distances[50.0] < 0.3 * distances[0.0]


def train_anchored(folder: str, options: dict) -> None:
    """A run of a process of several, or of the only one. Each has other weights until they are shared."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    PoaTrainer(anchored(seed=rank), arguments(folder, **options), images(24)).train()


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, 64])
def test_two_processes_are_one_run(tmp_path, size):
    options = dict(max_steps=3, same_sub_network=True, gram_teacher_size=size)
    train_anchored(str(tmp_path / "one"), {**options, "per_device_train_batch_size": 8})
    in_processes(2, train_anchored, str(tmp_path / "two"), options)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        names = [name for name in a if "loss" in name and "ibot" not in name]  # patches are weighed by process
        assert {name: b[name] for name in names} == pytest.approx({name: a[name] for name in names}, rel=2e-4)
