"""Sources that cannot become an elastic model: one sentence that says what differs, or what to do."""

import json

import pytest
import transformers
from safetensors.torch import load_file, save_file
from transformers import BeitConfig, Data2VecVisionConfig, Dinov2Config, Dinov2Model, ViTConfig

from poa_hf import PoaConfig, PoaForPreTraining, init_from, warm_start_config

from .test_stock import DINOV2, HEADS, VIT


def refusal(source, **fields) -> str:
    with pytest.raises(ValueError) as error:
        warm_start_config(source, **fields)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 500
    return text


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (BeitConfig(use_relative_position_bias=True), "adds relative position biases to its attention"),
        (Data2VecVisionConfig(use_shared_relative_position_bias=True), "adds relative position biases"),
        (BeitConfig(), "ends without a layer normalisation (use_mean_pooling)"),
        (BeitConfig(use_mean_pooling=False, use_absolute_position_embeddings=True), "has keys without biases"),
        ("IJepaConfig", "has no class token, while the patches of every elastic ViT attend to one"),
        ("SiglipVisionConfig", "has no class token"),
        ("CLIPVisionConfig", "normalises its tokens before the first block"),
        ("Swinv2Config", "has cosine attention and a position bias that a network computes"),
        ("ConvNextConfig", "is a convolutional network of its own kind"),
        ("DINOv3ConvNextConfig", "docs/new_family.md"),
        ("ResNetConfig", "has batch normalisation, while the elastic ResNet (gn_resnet) has group normalisation"),
        ("HieraConfig", "pools its queries between stages"),
        ("BertConfig", "is a 'bert' model: an elastic model can start from deit, dinov2, "),
    ],
    ids=str,
)
def test_what_no_family_computes_is_named(tmp_path, config, words):
    config = getattr(transformers, config)() if isinstance(config, str) else config
    config.save_pretrained(tmp_path / "source")
    text = refusal(tmp_path / "source")
    assert words in text and f"source is a {config.model_type!r} model" in text
    assert "an elastic model can start from" in text and "vit_mae" in text


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ViTConfig(**{**VIT, "intermediate_size": 100}), "intermediate_size 100, which is no multiple of its hidden"),
        (ViTConfig(**VIT, head_dim=16), "has head_dim 16, while the 4 heads of an elastic ViT share its hidden_size"),
        (ViTConfig(**{**VIT, "patch_size": [8, 4]}), "patch_size must be one number"),
        (ViTConfig(**{**VIT, "hidden_act": "swish_of_mine"}), "'swish_of_mine' is not an activation of transformers"),
        (Dinov2Config(**DINOV2, head_dim=16), "has head_dim 16"),
    ],
)
def test_values_that_the_family_cannot_hold_are_named(tmp_path, config, words):
    config.save_pretrained(tmp_path)
    assert words in refusal(tmp_path)


def test_a_head_size_that_is_written_out_is_no_obstacle(tmp_path):
    Dinov2Config(**DINOV2, head_dim=8).save_pretrained(tmp_path)
    assert warm_start_config(tmp_path).head_size == 8


def test_models_of_timm_and_odd_types_are_refused(tmp_path):
    for fields, words in (
        ({"architecture": "vit_base_patch16_dinov3", "num_classes": 0}, "a model of timm (vit_base_patch16_dinov3)"),
        ({"model_type": ["dinov2"]}, "is a \"['dinov2']\" model"),
        ({"model_type": 3}, "is a '3' model"),
        ({}, "has no model_type in its config.json: an elastic model can start from"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(fields))
        assert words in refusal(tmp_path)


@pytest.fixture
def repository(hub, tmp_path):
    """The files of a model, which is on the Hub as fb/open."""
    Dinov2Model(Dinov2Config(**DINOV2)).save_pretrained(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    hub.add_repo("fb/open", files)
    return files


def test_repositories_that_cannot_be_read_are_refused(hub, repository, monkeypatch):
    hub.add_repo("fb/gated", repository)
    hub.add_repo("fb/hidden", repository, private=True)
    for status in (401, 403):  # of somebody who is not logged in, or has not accepted the conditions
        gated = {"X-Error-Code": "GatedRepo"}
        hub.inject("GET|HEAD", "^/fb/gated/resolve/", status=status, times=None, headers=gated)
        text = refusal("fb/gated")
        assert "fb/gated is gated on the Hub: accept its conditions at " in text and "hf auth login" in text
        hub.clear()
    for missing in ("fb/nothing", "fb/hidden"):
        assert f"{missing} is neither a folder nor a model of the Hub that can be loaded" in refusal(missing)
    assert "fb/open has no revision 'v9' on the Hub" in refusal("fb/open@v9")
    neither = "fb/open is neither a folder nor a model of the Hub that can be loaded, as "
    hub.inject("GET|HEAD", ".*", times=None, drop="before")
    assert f"{neither}the Hub did not answer: check the name and the connection." in refusal("fb/open")
    hub.clear()
    hub.inject("GET|HEAD", ".*", times=None, status=500)
    assert f"{neither}the Hub answered with an error (status 500): check the name, or try" in refusal("fb/open")
    hub.clear()
    assert "that can be loaded, as the Hub has no such names: check the name." in refusal("my model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert f"{neither}HF_HUB_OFFLINE is set and the cache does not hold it: check" in refusal("fb/open")


def test_a_repository_gives_its_weights_or_says_what_they_lack(hub, repository, tmp_path):
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["layernorm.bias"]
    save_file(weights, tmp_path / "cut.safetensors", metadata={"format": "pt"})
    config = {"config.json": repository["config.json"]}
    hub.add_repo("fb/pickled", {**config, "pytorch_model.bin": b"weights"})
    hub.add_repo("fb/cut", {**config, "model.safetensors": (tmp_path / "cut.safetensors").read_bytes()})
    model = PoaForPreTraining(PoaConfig(backbone_config=warm_start_config("fb/open"), **HEADS))
    for repo, words in (
        ("fb/pickled", "has no weights in safetensors files .*convert one that you trust"),
        ("fb/cut", "lacks 1 parameter .layernorm.bias.: "),
    ):
        with pytest.raises(ValueError, match=f"{repo} {words}"):
            init_from(model, repo)
    assert str(init_from(model, "fb/open")).startswith("Full-size student and teacher start from fb/open (dinov2)")
