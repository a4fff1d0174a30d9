"""Pre-training by transformers' own `Trainer`."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import AutoModelForPreTraining, Trainer, TrainingArguments

from poa_hf import PoaForPreTraining, PoaTrainer
from poa_hf.data.crop_arguments import CropArguments
from poa_hf.data.crops import multi_crop
from poa_hf.training.stock_trainer import PoaDataCollator, TeacherCallback

from ..conftest import tiny_backbone, tiny_config
from .test_trainer import arguments, images, new_model

CROPS = CropArguments(global_crop_size=32, local_crop_size=16, num_local_crops=2)


def test_a_batch_has_the_crops_masks_and_size_of_its_seed():
    config = tiny_config(tiny_backbone())
    collator = PoaDataCollator(config, CROPS, teacher_temperature=0.05)
    batches = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        batches.append(collator([{"image": image} for image in images(4)]))
    first, again, other = batches
    assert torch.equal(first["global_crops"], again["global_crops"]) and first["sub_network"] == again["sub_network"]
    assert not torch.equal(first["global_crops"], other["global_crops"])
    assert first["masks"].shape == (8, 16) and first["masks"].any(1).sum() == 4  # half of the views
    assert first["teacher_temperature"] == 0.05
    sizes = {str(collator([images(1)[0]])["sub_network"]) for _ in range(200)}
    space = config.backbone_config.space
    assert sizes == {str(size) for size in space if size != space.full}


def test_views_are_in_the_order_of_the_model():
    """Without colours, crops are those of each image, first views first, normalised."""
    plain = dict(
        color_jitter_probability=0.0, grayscale_probability=0.0, blur_probability=[0.0] * 3, solarize_probability=0.0,
        flip_probability=0.0,
    )  # fmt: skip
    args = CropArguments(global_crop_size=32, local_crop_size=16, num_local_crops=2, **plain)
    batch = PoaDataCollator(tiny_config(tiny_backbone()), args)([{"image": image} for image in images(3)])
    torch.manual_seed(0)  # as the fixture of all tests
    rng = np.random.default_rng(int(torch.randint(2**62, (1,))))
    mean, std = (np.array(values)[:, None, None] for values in (args.image_mean, args.image_std))
    for place, image in enumerate(images(3)):
        global_crops, local_crops, _ = multi_crop(image, rng, args)
        for name, crops in (("global_crops", global_crops), ("local_crops", local_crops)):
            for view, crop in enumerate(crops):
                expected = (crop / 255 - mean) / std
                np.testing.assert_allclose(batch[name][view * 3 + place], expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_crops_have_the_channels_of_the_model(channels):
    config = tiny_config(tiny_backbone(num_channels=channels))
    rows = [{"image": np.full((40, 40, channels), 128, dtype=np.uint8)} for _ in range(2)]
    batch = PoaDataCollator(config, CROPS)(rows)
    assert batch["global_crops"].shape == (4, channels, 32, 32)
    statistics = [0.5] * channels, [0.25] * channels
    crops = dataclasses.replace(CROPS, image_mean=statistics[0], image_std=statistics[1])
    assert PoaDataCollator(config, crops).crops == crops
    other = dataclasses.replace(CROPS, image_mean=[0.5, 0.5], image_std=[0.2, 0.2])
    with pytest.raises(ValueError, match=f"^crops has .* of 2 numbers, but the model takes {channels} channels"):
        PoaDataCollator(config, other)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_trainer_lowers_the_loss_and_the_teacher_follows_by_its_momentum(tmp_path, accumulation):
    config = tiny_config(tiny_backbone())
    model = AutoModelForPreTraining.from_config(config)
    before = [p.clone() for p in model.teacher.parameters()]
    args = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=accumulation,
        remove_unused_columns=False, report_to="none", save_strategy="no", use_cpu=True, learning_rate=0.01,
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    dataset = [{"image": image} for image in images(16)]
    trainer = Trainer(model, args, PoaDataCollator(config, CROPS), dataset, callbacks=[TeacherCallback(0.75, 0.75)])
    assert np.isfinite(trainer.train().training_loss)
    for teacher, old, student in zip(model.teacher.parameters(), before, model.student.parameters(), strict=True):
        torch.testing.assert_close(teacher, 0.75 * old + 0.25 * student)
    trainer.save_model()
    assert AutoModelForPreTraining.from_pretrained(tmp_path).config.num_prototypes == config.num_prototypes


def stock_trainer(tmp_path, model, **options) -> Trainer:
    fields = dict(
        max_steps=1, per_device_train_batch_size=2, remove_unused_columns=False, report_to="none", save_strategy="no",
        use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    args = TrainingArguments(str(tmp_path), **{**fields, **options})
    dataset = [{"image": image} for image in images(4)]
    return Trainer(model, args, PoaDataCollator(model.config, CROPS), dataset, callbacks=[TeacherCallback()])


def test_several_gpus_in_one_process_are_refused(tmp_path):
    """They are `nn.DataParallel`, whose parts of a batch hold views of different images."""
    trainer = stock_trainer(tmp_path, new_model())
    trainer.args._n_gpu = 3
    with pytest.raises(ValueError, match="in 3 parts.*: start it by torchrun or accelerate launch, or set .*one GPU.$"):
        trainer.train()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_are_refused(dtype, tmp_path):
    """As a model has that was saved so, because transformers loads it in the type in which it was saved."""
    new_model().to(dtype).save_pretrained(tmp_path / "saved")
    words = f"weights are {str(dtype)[6:]}, .*: train model.float\\(\\), or load it by .*dtype=torch.float32\\).$"
    with pytest.raises(ValueError, match=words):
        stock_trainer(tmp_path, PoaForPreTraining.from_pretrained(tmp_path / "saved")).train()
    with pytest.raises(ValueError, match=words):
        PoaTrainer(PoaForPreTraining.from_pretrained(tmp_path / "saved"), arguments(tmp_path / "run"), images())
    whole = PoaForPreTraining.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert PoaTrainer(whole, arguments(tmp_path / "run", max_steps=1, quiet=True), images()).train().global_step == 1
