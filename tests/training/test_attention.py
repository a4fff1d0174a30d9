"""The attention of a run is the one that was asked for, in all three branches, and leaves no trace in what is saved."""

import json

import pytest
import torch
from transformers import AttentionInterface, AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from poa_hf import PoaForPreTraining, PoaTrainer
from poa_hf.cli.recipe import parse_recipe
from poa_hf.training.checks import check_run

from ..conftest import FAMILIES, GOLDEN_BACKBONES, tiny_config
from .test_trainer import arguments, images, metrics, new_model


def test_all_three_branches_compute_with_it_and_no_trace_is_left(tmp_path):
    widths = []

    def counting(module, query, *args, **kwargs):
        widths.append((module.training, query.shape[1] * query.shape[3]))
        return sdpa_attention_forward(module, query, *args, **kwargs)

    AttentionInterface.register("counting", counting)
    try:
        trainer = PoaTrainer(new_model(), arguments(tmp_path, max_steps=3, attn_implementation="counting"), images())
        trainer.train()
    finally:
        del AttentionInterface._global_mapping["counting"]
    space = trainer.model.config.backbone_config.space
    full = space.full.width
    assert {(False, full), (True, full)} < set(widths), "teacher or intact student"
    assert any(training and width < full for training, width in widths), "elastic student"
    # two forward passes of a step's students, global and local, and one of the teacher
    sizes = [line["sub_network"] for line in metrics(tmp_path)]
    elastic = sum(2 * sum(space.resolve(size).depths) for size in sizes)
    assert len(widths) == elastic + 3 * 3 * sum(space.full.depths)

    assert "counting" not in (tmp_path / "config.json").read_text()
    saved = PoaForPreTraining.from_pretrained(tmp_path)
    saved.teacher.extract(space.smallest).save_pretrained(tmp_path / "size")
    assert "attn" not in (tmp_path / "size" / "config.json").read_text()
    assert AutoModel.from_pretrained(tmp_path / "size").config._attn_implementation == "sdpa"


def test_eager_and_the_default_are_the_same_function(tmp_path):
    losses, weights = [], []
    for name in (None, "eager"):
        trainer = PoaTrainer(new_model(), arguments(tmp_path / str(name), attn_implementation=name), images())
        assert trainer.model.student.config._attn_implementation == (name or "sdpa")
        trainer.train()
        losses.append([line["loss"] for line in metrics(tmp_path / str(name))])
        weights.append(trainer.model.state_dict())
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)
    torch.testing.assert_close(*weights, rtol=0, atol=1e-3)
    assert json.loads((tmp_path / "eager" / "training_args.json").read_text())["attn_implementation"] == "eager"


@pytest.mark.parametrize(
    ("family", "name", "message"),
    [
        ("vit", "flash_attention_2", r"flash_attention_2' does not work for poa_vit on this machine \(.*installed\)"),
        ("vit", "quick", "'quick' does not work for poa_vit"),
        ("swin", "flash_attention_2", "does not work for poa_swin .*PoaSwinModel does not support Flash Attention 2"),
        ("resnet", "sdpa", "A poa_resnet has no attention to choose: leave attn_implementation out."),
        ("resnet", "eager", "has no attention"),
    ],
)
def test_what_model_or_machine_lack_is_refused_before_any_work(family, name, message, tmp_path):
    args = arguments(tmp_path, attn_implementation=name, bf16=True, global_crop_size=64, local_crop_size=32)
    config = tiny_config(dict(GOLDEN_BACKBONES[family]))
    if family == "vit" and name.startswith("flash") and torch.cuda.is_available():
        pytest.skip("flash attention may be installed")
    with pytest.raises(ValueError, match=message) as error:
        check_run(config, args)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", FAMILIES[:2])
def test_what_families_with_attention_have(family, tmp_path):
    config = tiny_config(dict(GOLDEN_BACKBONES[family]))
    for name in (None, "sdpa", "eager"):
        check_run(config, arguments(tmp_path, attn_implementation=name, global_crop_size=64, local_crop_size=32))


def test_half_precision_attention_needs_half_precision(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.PreTrainedModel.set_attn_implementation", lambda self, name: None)
    config = new_model().config
    with pytest.raises(ValueError, match="computes in half precision only: add --bf16"):
        check_run(config, arguments(tmp_path, attn_implementation="flash_attention_2"))
    check_run(config, arguments(tmp_path, attn_implementation="flash_attention_2", bf16=True))


def test_it_is_an_option_of_the_command():
    recipe = parse_recipe(["--attn_implementation", "eager"])
    assert recipe.training.attn_implementation == "eager" and "attn_implementation: eager" in recipe.to_yaml()
    assert parse_recipe([]).training.attn_implementation is None
