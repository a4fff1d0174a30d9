"""`poa pretrain --init_from`: what it derives, refuses and does."""

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file
from transformers import (
    BitImageProcessorPil,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    SwinConfig,
    ViTConfig,
    ViTMAEConfig,
)

from poa_hf import PoaConfig, PoaForPreTraining
from poa_hf.cli.main import main
from poa_hf.cli.recipe import parse_recipe

from ..conftest import golden_config, golden_weights, tiny_config

TINY = (
    "--model.num_prototypes [12,20] --model.head_hidden_size 24 --model.head_bottleneck_size 8 --disable_tqdm "
    "--per_device_train_batch_size 4 --dataloader_num_workers 0 --num_local_crops 2 --max_steps 4 --warmup_steps 2 "
    "--save_steps 2 --logging_steps 1 --order_images 8"
).split()

FROZEN = [*TINY, "--freeze_backbone_steps", "2", "--no_order_units"]


@pytest.fixture
def source(tmp_path):
    torch.manual_seed(1)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, image_size=56, layerscale_value=0.1
    )
    Dinov2Model(config).save_pretrained(tmp_path / "source")
    processor = BitImageProcessorPil(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.2])
    processor.save_pretrained(tmp_path / "source")
    return str(tmp_path / "source")


def refused(capsys, *argv: str) -> str:
    assert main(["pretrain", *argv]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("poa: ")
    return message


def test_nothing_but_the_source_is_needed(tmp_path, source):
    recipe = parse_recipe(["--init_from", source])
    assert str(recipe.model.backbone_config.space.full) == "32x4" and recipe.model.backbone_config.image_size == 56
    training = recipe.training
    assert (training.global_crop_size, training.local_crop_size) == (56, 28)
    assert (training.image_mean, training.image_std) == ([0.5, 0.4, 0.3], [0.2, 0.2, 0.2])
    assert (training.learning_rate, training.max_steps) == (4e-4, 27_680)
    assert (training.warmup_steps, training.freeze_backbone_steps) == (800, 800)
    for config, crops in (
        (Dinov2Config(image_size=518), (224, 98)),
        (ViTConfig(image_size=384), (224, 96)),
        (ViTMAEConfig(image_size=[224, 448]), (224, 96)),
        (Dinov2WithRegistersConfig(image_size=518, patch_size=14), (224, 98)),
        (DINOv3ViTConfig(image_size=[768, 512]), (224, 96)),
        (SwinConfig(image_size=384, window_size=12), (384, 96)),
    ):
        config.save_pretrained(tmp_path / "other")
        training = parse_recipe(["--init_from", str(tmp_path / "other")]).training
        assert (training.global_crop_size, training.local_crop_size) == crops
        assert training.image_mean == [0.485, 0.456, 0.406]


def test_what_is_given_is_kept(source, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"init_from: {source}\nlearning_rate: 1.0e-3\nimage_mean: [0.1, 0.1, 0.1]\nfreeze_backbone_steps: 0\n"
        "model: {backbone_config: {min_hidden_size: 24, layer_norm_eps: 1e-6}}\n"
    )
    recipe = parse_recipe(["--config", str(file), "--max_steps", "50", "--global_crop_size", "84"])
    training = recipe.training
    assert (training.learning_rate, training.max_steps, training.freeze_backbone_steps) == (1e-3, 50, 0)
    assert training.image_mean == [0.1, 0.1, 0.1] and training.global_crop_size == 84
    assert str(recipe.model.backbone_config.space.smallest) == "24x2"
    assert parse_recipe(["--init_from", source, "--max_steps", "50"]).training.freeze_backbone_steps == 5
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())
    read = parse_recipe(["--config", str(again)])
    assert (read.training, read.init_from) == (training, source) and read.model.to_dict() == recipe.model.to_dict()


def test_the_learning_rate_of_a_start_from_nothing_is_noted(source, tmp_path, caplog):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rate: 4.0e-3\n")
    parse_recipe(["--config", str(recipe), "--init_from", source])
    assert "learning rate, 0.004, is for a start from nothing" in caplog.text
    assert "--learning_rate 0.0004" in caplog.text
    caplog.clear()
    parse_recipe(["--config", str(recipe), "--init_from", source, "--learning_rate", "0.002"])  # as the user says
    parse_recipe(["--init_from", source])
    recipe.write_text(f"init_from: {source}\nlearning_rate: 4.0e-3\n")  # a recipe for this start
    parse_recipe(["--config", str(recipe)])
    assert not caplog.text


def test_a_run_brings_its_heads_and_space_and_a_file_needs_its_configuration(tmp_path):
    PoaForPreTraining(tiny_config(intact_weight=0.6)).save_pretrained(tmp_path / "run")
    recipe = parse_recipe(["--init_from", str(tmp_path / "run"), "--model.koleo_weight", "0"])
    model = recipe.model
    assert model.num_prototypes == [12, 20] and model.intact_weight == 0.6 and model.koleo_weight == 0
    assert model.backbone_config.space == tiny_config().backbone_config.space
    file = tmp_path / "teacher.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in golden_weights("vit").items()}, file)
    fields = golden_config("vit").backbone_config.to_dict()
    names = "hidden_size num_hidden_layers num_attention_heads image_size patch_size min_hidden_size".split()
    given = [f"--model.backbone_config.{name}={fields[name]}" for name in names]
    given += [
        "--model.num_prototypes",
        "[24,40]",
        "--model.head_hidden_size",
        "32",
        "--model.head_bottleneck_size",
        "16",
    ]
    run = str(tmp_path / "new")
    limits = [
        "--max_steps",
        "1",
        "--per_device_train_batch_size",
        "2",
        "--dataloader_num_workers",
        "0",
        "--disable_tqdm",
    ]
    argv = ["--init_from", str(file), *given, *limits, "--freeze_backbone_steps", "1", "--output_dir", run]
    assert main(["pretrain", *argv]) == 0
    teacher = PoaForPreTraining.from_pretrained(run).teacher
    assert torch.equal(teacher.embeddings.cls_token, golden_weights("vit")["backbone.cls_token"])


def test_it_runs_says_what_it_does_and_resumes_without_the_source(tmp_path, source, caplog, capsys):
    import shutil

    run = str(tmp_path / "run")
    with caplog.at_level("INFO", logger="poa_hf"):
        assert main(["pretrain", "--init_from", source, *FROZEN, "--output_dir", run]) == 0
    said = caplog.text
    assert "Full-size student and teacher start from source (dinov2)" in said
    assert (
        "The space: 9 sizes, widths 16 to 32 in steps of 8, depths 2 to 4" in said
        and "the first 2 for the heads only" in said
    )
    assert "position embeddings are resized" not in said
    frozen = PoaForPreTraining.from_pretrained(f"{run}/checkpoint-2")
    stock = Dinov2Model.from_pretrained(source).state_dict()
    for backbone in (frozen.student, frozen.teacher):
        assert all(torch.equal(tensor, stock[name]) for name, tensor in backbone.state_dict().items())
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["init_from"] == source and saved["freeze_backbone_steps"] == 2
    shutil.rmtree(source)
    caplog.clear()
    argv = ["--config", f"{run}/config.yaml", "--max_steps", "5", "--output_dir", run]
    with caplog.at_level("INFO", logger="poa_hf"):
        assert main(["pretrain", *argv, "--resume_from_checkpoint"]) == 0
    assert "not read again" in caplog.text
    assert PoaConfig.from_pretrained(run).warm_started_from == "source"
    options = ["--init_from", source, *TINY, "--max_steps", "6", "--output_dir", run]
    assert main(["pretrain", *options, "--resume_from_checkpoint"]) == 0
    other = ["--init_from", "some/model", *TINY, "--output_dir", run, "--resume_from_checkpoint"]
    assert "belongs to a run that started from source, and would resume without reading some/model" in refused(
        capsys, *other
    )


def test_a_run_that_started_otherwise_is_not_continued_as_if_it_had(tmp_path, source, capsys):
    run = str(tmp_path / "run")
    backbone = ["--model.backbone_config.hidden_size", "32", "--model.backbone_config.num_attention_heads", "4",
                "--model.backbone_config.num_hidden_layers", "2", "--global_crop_size", "32", "--local_crop_size", "16",
                "--model.backbone_config.image_size", "32"]  # fmt: skip
    assert main(["pretrain", *backbone, *TINY, "--output_dir", run]) == 0
    argv = ["--init_from", source, *TINY, "--output_dir", run]
    assert "did not start from another model" in refused(capsys, *argv, "--resume_from_checkpoint")
    assert "holds another run" in refused(capsys, *argv)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--model.backbone_config.hidden_size 64", "hidden_size is 64, but source has 32"),
        ("--model.backbone_config.patch_size 16", "patch_size is 16, but source has 14"),
        ("--model.backbone_config.model_type poa_swin", "model_type is poa_swin, but source is a 'dinov2' model"),
        ("--model.backbone_config.min_hidden_size 64", "min_hidden_size 64 is larger than hidden_size 32"),
        ("--model.backbone_config.hiden_size 64", "did you mean model.backbone_config.hidden_size?"),
        ("--global_crop_size 50", "global_crop_size 50 is not a multiple of 14"),
        ("--init_frm x", "did you mean --init_from?"),
        ("--init_from nobody/nothing", "nobody/nothing is neither a folder nor a model of the Hub"),
        ("--init_from ./missing.pth", "There is nothing at './missing.pth' to start from"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, source, capsys, monkeypatch, options, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    output = tmp_path / "run"
    options = options.split()
    start = [] if "--init_from" in options else ["--init_from", source]
    assert words in refused(capsys, *start, *options, "--output_dir", str(output))
    assert not output.exists()


def test_evaluation_begins_with_the_source(tmp_path, source):
    run = tmp_path / "run"
    limits = "--eval_steps 4 --eval_k 3 --eval_max_train_images 30 --eval_max_test_images 20 --eval_sizes small".split()
    assert main(["pretrain", "--init_from", source, *TINY, *limits, "--output_dir", str(run)]) == 0
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"knn_start", "knn_16x2", "knn_32x4"} <= log[-1].keys()
    records = json.loads((run / "evaluations.json").read_text())
    assert [(r["step"], r["size"]) for r in records] == [(0, "16x2"), (0, "32x4"), (4, "16x2"), (4, "32x4")]
    assert records[1]["value"] == log[-1]["knn_start"]
