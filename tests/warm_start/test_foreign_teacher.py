"""`--foreign_teacher`: a folder or repository, from training to the card of an extracted size."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertModel, ViTConfig, ViTForImageClassification, ViTModel

from poa_hf.warm_start.foreign_teacher import load_foreign_teacher

from ..conftest import QUICKSTART, TINY

SMALL = dict(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, image_size=32, patch_size=8
)


@pytest.fixture
def folder(tmp_path):
    ViTModel(ViTConfig(**SMALL)).save_pretrained(tmp_path / "their-vit")
    return tmp_path / "their-vit"


def pretrain(tmp_path, teacher, *options: str) -> list[str]:
    return ["pretrain", "--config", QUICKSTART, *TINY.split(), "--output_dir", str(tmp_path / "run"),
            "--foreign_teacher", str(teacher), *options]  # fmt: skip


def test_a_family_is_distilled_extracted_and_described(tmp_path, folder, poa):
    poa(*pretrain(tmp_path, folder))
    run = tmp_path / "run"
    assert yaml.safe_load((run / "config.yaml").read_text())["foreign_teacher"] == str(folder)
    assert json.loads((run / "config.json").read_text())["distillation"]["teacher"] == "their-vit"
    poa("extract", run, "--size", "small", "--output", tmp_path / "small")
    AutoModel.from_pretrained(tmp_path / "small")
    card = (tmp_path / "small" / "README.md").read_text()
    assert "was distilled from their-vit without labels" in card
    assert "learn from a frozen teacher,\ntheir-vit." in card
    assert "image and patch features, cosine" in card and "| prototypes |" not in card
    assert str(tmp_path) not in card
    # the recipe alone is enough to go on
    poa("resume", run, "--max_steps", "3")
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3


def test_a_run_is_a_teacher(tmp_path, poa, vit_run):
    poa(*pretrain(tmp_path, vit_run, "--foreign_teacher_loss", "prototypes"))
    assert json.loads((tmp_path / "run" / "config.json").read_text())["distillation"]["image_features"] == 32


def test_a_classifier_is_a_teacher_without_its_pooler(tmp_path):
    ViTForImageClassification(ViTConfig(**SMALL)).save_pretrained(tmp_path)
    teacher = load_foreign_teacher(tmp_path)
    teacher.prepare(32, [0.5] * 3, [0.5] * 3, torch.device("cpu"))
    crops = torch.randn(2, 3, 32, 32)
    assert torch.equal(teacher(crops, None).images, teacher.model(crops).last_hidden_state[:, 0])


def test_repositories_of_the_hub(tmp_path, folder, hub, poa):
    hub.add_repo("me/their-vit", files={path.name: path.read_bytes() for path in folder.iterdir()})
    assert load_foreign_teacher("me/their-vit").name == "me/their-vit"
    nothing = {"": "foreign_teacher is '': give it a value", "/nowhere": "There is nothing at '/nowhere' to learn from"}
    for source, message in nothing.items():
        assert poa(*pretrain(tmp_path, source), status=2).startswith(f"poa: {message}")
    with pytest.raises(ValueError, match="^There is nothing at ''"):
        load_foreign_teacher("")
    told = poa(*pretrain(tmp_path, "me/nothing"), status=2)
    assert told.startswith("poa: me/nothing is neither a folder nor a model of the Hub")
    hub.add_repo("me/gated", files={})
    hub.inject("GET", "me/gated", status=403, headers={"X-Error-Code": "GatedRepo"})
    assert "me/gated is gated on the Hub: accept its conditions" in poa(*pretrain(tmp_path, "me/gated"), status=2)


def _without(name: str):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        save_file({n: t for n, t in tensors.items() if name not in n}, folder / "model.safetensors", {"format": "pt"})

    return spoil


def _text_model(folder):
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    BertModel(config).save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("encoder"), "their-vit lacks"),
        (_text_model, "their-vit is a 'bert' model, which does not take images"),
        (lambda folder: (folder / "model.safetensors").unlink(), "their-vit has no weights in safetensors files"),
        (lambda folder: (folder / "config.json").unlink(), "holds no model yet"),
    ],
)
def test_what_cannot_be_a_teacher_ends_in_one_sentence(tmp_path, folder, poa, spoil, message):
    spoil(folder)
    assert message in poa(*pretrain(tmp_path, folder), status=2)
    assert not (tmp_path / "run").exists()
