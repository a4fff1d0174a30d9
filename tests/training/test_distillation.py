"""Runs that learn from a frozen model of another's."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ConvNextConfig, ConvNextModel, Dinov2Config, Dinov2Model, TrainerCallback
from transformers.modeling_outputs import BaseModelOutputWithPooling

from poa_hf import PoaForPreTraining, PoaTrainer, PoaTrainingArguments, TextureDataset

from ..conftest import tiny_config
from .processes import in_processes
from .test_trainer import arguments, images, metrics, new_model

FORMS = {
    "features": dict(),
    "images only, smooth L1": dict(foreign_teacher_patches=False, foreign_teacher_metric="smooth_l1"),
    "prototypes": dict(foreign_teacher_loss="prototypes"),
}


def teacher(seed: int = 5) -> Dinov2Model:
    torch.manual_seed(seed)
    return Dinov2Model(
        Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
    )


def states(*folders) -> list[dict[str, torch.Tensor]]:
    return [PoaForPreTraining.from_pretrained(folder).state_dict() for folder in folders]


@pytest.mark.parametrize("form", ["features", "prototypes"])
def test_resuming_is_exact_and_leaves_the_teacher_alone(tmp_path, form):
    options = dict(max_steps=3, save_steps=1, gradient_accumulation_steps=2, bf16=form == "features", **FORMS[form])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    frozen = teacher()
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    PoaTrainer(new_model(), arguments(whole, **options), images(), foreign_teacher=frozen).train()
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PoaTrainer(
            new_model(), arguments(parts, **options), images(), callbacks=[Stop()], foreign_teacher=teacher()
        ).train()
    torch.manual_seed(9)
    PoaTrainer(new_model(), arguments(parts, **options), images(), foreign_teacher=teacher()).train(True)
    a, b = states(whole, parts)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert json.loads((whole / "config.json").read_text())["distillation"]["teacher"] == "Dinov2Model"


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_student_learns_what_the_teacher_knows(tmp_path, form):
    model = new_model()
    options = dict(max_steps=40, learning_rate=0.02, teacher_momentum=0.9, final_teacher_momentum=0.95)
    PoaTrainer(model, arguments(tmp_path, **options, **FORMS[form]), images(), foreign_teacher=teacher()).train()
    name = "dino_global_crops_loss_0" if form == "prototypes" else "feature_image_loss"
    losses = [line[name] for line in metrics(tmp_path)]
    assert sum(losses[-5:]) < 0.9 * sum(losses[1:6])
    # the published model is the average of the student, as without a foreign teacher
    pairs = zip(model.teacher.parameters(), model.student.parameters(), strict=True)
    assert all((average - trained).abs().max() < 0.1 for average, trained in pairs)


def test_another_teacher_or_none_is_not_resumed_with(tmp_path):
    PoaTrainer(new_model(), arguments(tmp_path, save_steps=2, max_steps=2), images(), foreign_teacher=teacher()).train()
    for other, options, message in (
        (None, {}, "learns from 'Dinov2Model', this one learns from no foreign teacher"),
        (teacher(seed=6), {}, "with other weights than it has now"),
        (teacher(), FORMS["prototypes"], "with loss 'features', this one with 'prototypes'"),
    ):
        trainer = PoaTrainer(
            new_model(), arguments(tmp_path, max_steps=4, **options), images(), foreign_teacher=other
        )  # fmt: skip
        with pytest.raises(ValueError, match=message):
            trainer.train(resume_from_checkpoint=True)


def test_a_teacher_without_patches_is_refused_where_patches_are_matched(tmp_path, monkeypatch):
    model = ConvNextModel(ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], image_size=32))
    forward = model.forward

    def pooled(pixel_values):
        return BaseModelOutputWithPooling(pooler_output=forward(pixel_values).pooler_output)

    monkeypatch.setattr(model, "forward", pooled)
    with pytest.raises(ValueError, match="has no features of patches.*add --foreign_teacher_patches false"):
        PoaTrainer(new_model(), arguments(tmp_path), images(), foreign_teacher=model)
    options = arguments(tmp_path, foreign_teacher_patches=False, max_steps=1)
    PoaTrainer(new_model(), options, images(), foreign_teacher=model).train()


def test_options_of_a_teacher_need_one(tmp_path):
    with pytest.raises(ValueError, match="foreign_teacher_size is given, but no teacher"):
        PoaTrainer(new_model(), arguments(tmp_path, foreign_teacher_size=32), images())
    with pytest.raises(ValueError, match="foreign_teacher_loss is 'both': choose one of features, prototypes"):
        PoaTrainingArguments(foreign_teacher_loss="both")


@pytest.mark.parametrize("form", ["features", pytest.param("prototypes", marks=pytest.mark.slow)])
def test_cached_features_are_those_of_whole_images_and_serve_a_resumed_run(tmp_path, form):
    options = dict(max_steps=3, save_steps=1, cache_teacher=True, foreign_teacher_patches=False)
    options |= dict(foreign_teacher_loss=form)
    calls = []

    def train(folder, *resume):
        frozen = teacher()
        frozen.register_forward_pre_hook(lambda *_: calls.append(folder.name))
        dataset = [*images(), b"not an image"]
        trainer = PoaTrainer(new_model(), arguments(folder, **options), dataset, foreign_teacher=frozen)
        trainer.train(*resume)
        return trainer

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer = train(whole)
    # 16 of 17 images, resized as Pillow does, normalised as the crops are
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (trainer.args.image_mean, trainer.args.image_std))
    pixels = [np.asarray(image.resize((28, 28), Image.Resampling.BICUBIC)) for image in images()]
    pixels = torch.stack([(torch.tensor(each).permute(2, 0, 1) / 255 - mean) / std for each in pixels])
    expected = teacher().eval()(pixels).pooler_output
    given = trainer.teacher_features({"image_ids": [str(index) for index in range(16)]}, None).images
    torch.testing.assert_close(given, expected.repeat(2, 1), rtol=0.03, atol=0.03)  # both round to 8 bits
    train(parts)
    calls.clear()
    train(parts, str(parts / "checkpoint-2"))
    assert len(calls) == 2  # to find out what it computes; the features are read
    a, b = states(whole, parts)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_what_cannot_be_cached_is_refused(tmp_path):
    options = dict(cache_teacher=True, foreign_teacher_patches=False)
    stream = datasets.Dataset.from_dict({"picture": images(4)}).to_iterable_dataset()
    with pytest.raises(ValueError, match="not a stream or a mixture: add --streaming false"):
        PoaTrainer(new_model(), arguments(tmp_path, **options), stream, foreign_teacher=teacher())
    with pytest.raises(ValueError, match="206 GB of features of 2,147,483,648 images.*leave it out"):
        PoaTrainer(new_model(), arguments(tmp_path, **options), TextureDataset(), foreign_teacher=teacher())
    with pytest.raises(ValueError, match="keeps features of whole images.*add --foreign_teacher_patches false"):
        PoaTrainer(new_model(), arguments(tmp_path, cache_teacher=True), images(), foreign_teacher=teacher())
    with pytest.raises(ValueError, match="cache_teacher is given, but no teacher"):
        PoaTrainer(new_model(), arguments(tmp_path, cache_teacher=True), images())


def distil(folder: str, options: dict) -> None:
    """A run of a process of several, or of the only one."""
    torch.manual_seed(0)
    model = PoaForPreTraining(tiny_config(koleo_weight=0))  # KoLeo is of each process's images
    PoaTrainer(model, arguments(folder, **options), images(24), foreign_teacher=teacher()).train()


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [
        dict(),
        dict(foreign_teacher_loss="prototypes"),
        dict(cache_teacher=True, foreign_teacher_patches=False),
    ],
    ids=["features", "prototypes", "cached"],
)
def test_two_processes_are_one_run(tmp_path, form):
    options = dict(max_steps=3, same_sub_network=True, **form)
    distil(str(tmp_path / "one"), {**options, "per_device_train_batch_size": 8})
    in_processes(2, distil, str(tmp_path / "two"), options)
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    names = [name for name in one[0] if "loss" in name and "ibot" not in name]  # patches are weighed by process
    assert names and len(one) == len(two) == 3
    for a, b in zip(one, two, strict=True):
        assert {name: b[name] for name in names} == pytest.approx({name: a[name] for name in names}, rel=2e-4)
