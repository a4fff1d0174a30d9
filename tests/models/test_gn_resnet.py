import json

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification

from poa_hf.models.activation_checkpointing import enable_activation_checkpointing
from poa_hf.models.configuration_gn_resnet import GnResNetConfig
from poa_hf.models.modeling_gn_resnet import GnResNetBackbone, GnResNetForImageClassification, GnResNetModel

from ..conftest import run_python

CLASSES = [GnResNetModel, GnResNetForImageClassification, GnResNetBackbone]
CODE = {"configuration_gn_resnet.py", "modeling_gn_resnet.py"}


def tiny(config_class=GnResNetConfig, **overrides) -> GnResNetConfig:
    fields = dict(embedding_size=8, hidden_sizes=[16, 32, 64], depths=[1, 2, 2], base_width=12, num_groups=4)
    return config_class(**{**fields, "image_size": 32, "num_labels": 5, **overrides})


def randomised(model):
    """Weights of every parameter away from ones and zeros, so that each of them matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def images(num_images: int = 2, size: int = 64) -> torch.Tensor:
    return torch.randn(num_images, 3, size, size, generator=torch.Generator().manual_seed(1))


def reference(weights: dict[str, torch.Tensor], config: GnResNetConfig, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The stem's output and each stage's, written down block by block."""

    def conv_norm(x, name, stride=1):
        kernel = weights[f"{name}.convolution.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        scale, shift = weights[f"{name}.normalization.weight"], weights[f"{name}.normalization.bias"]
        return F.group_norm(x, config.num_groups, scale, shift, config.layer_norm_eps)

    x = F.max_pool2d(conv_norm(pixels, "embedder.embedder", 2).relu(), 3, 2, 1)
    outputs = [x]
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            name = f"encoder.stages.{stage}.layers.{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            y = conv_norm(x, f"{name}.layer.0").relu()
            y = conv_norm(y, f"{name}.layer.1", stride).relu()
            y = conv_norm(y, f"{name}.layer.2")
            x = (y + (conv_norm(x, f"{name}.shortcut", stride) if block == 0 else x)).relu()
        outputs.append(x)
    return outputs


def test_computes_what_is_written_down():
    model, pixels = randomised(GnResNetModel(tiny())), images()
    output = model(pixels, output_hidden_states=True)
    expected = reference(model.state_dict(), model.config, pixels)
    assert [tuple(state.shape) for state in output.hidden_states] == [
        (2, 8, 16, 16),
        (2, 16, 16, 16),
        (2, 32, 8, 8),
        (2, 64, 4, 4),
    ]
    for state, wanted in zip(output.hidden_states, expected, strict=True):
        torch.testing.assert_close(state, wanted)
    assert torch.equal(output.last_hidden_state, output.hidden_states[-1])
    torch.testing.assert_close(output.pooler_output, expected[-1].flatten(2).mean(-1))
    assert model(images(1, 47)).pooler_output.shape == (1, 64)


def test_every_parameter_is_used_and_none_is_left_over():
    model, pixels = randomised(GnResNetModel(tiny())), images()
    model(pixels).pooler_output.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert not list(model.buffers())
    names = set(model.state_dict())
    assert "encoder.stages.0.layers.0.shortcut.convolution.weight" in names
    assert not any("layers.1.shortcut" in name for name in names)


def test_activation_and_epsilon_are_the_configurations():
    pixels = images()
    relu = randomised(GnResNetModel(tiny()))
    for changed in ({"hidden_act": "silu"}, {"layer_norm_eps": 0.1}):
        other = GnResNetModel(tiny(**changed)).eval()
        other.load_state_dict(relu.state_dict())
        assert not torch.allclose(relu(pixels).pooler_output, other(pixels).pooler_output, atol=1e-3)


def test_initial_weights():
    model = GnResNetForImageClassification(GnResNetConfig(depths=[1, 1, 1, 1], num_labels=10))
    convolution = model.resnet.encoder.stages[0].layers[0].layer[1].convolution.weight
    assert abs(convolution.std() / (2 / (64 * 9)) ** 0.5 - 1) < 0.05  # He et al. 2015, fan-out
    norm = model.resnet.encoder.stages[3].layers[0].shortcut.normalization
    assert norm.weight.eq(1).all() and norm.bias.eq(0).all()
    assert model.classifier.weight.abs().max() <= 2048**-0.5 and model.classifier.weight.std() > 0.01


@pytest.mark.parametrize("model_class", CLASSES)
def test_save_and_load(tmp_path, model_class):
    model = randomised(model_class(tiny(out_features=["stem", "stage2"])))
    model.save_pretrained(tmp_path)
    auto = {"GnResNetModel": AutoModel, "GnResNetForImageClassification": AutoModelForImageClassification}
    loaders = [model_class, *filter(None, [auto.get(model_class.__name__)])]
    for loader in loaders:
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is model_class and not any(info.values())
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(loaded(images())[0], model(images())[0], strict=True))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is GnResNetConfig and config.to_json_string() == model.config.to_json_string()


def test_a_model_checkpoint_becomes_classifier_or_backbone_and_back(tmp_path):
    model = randomised(GnResNetModel(tiny()))
    model.save_pretrained(tmp_path / "model")
    classifier, info = GnResNetForImageClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"} and not info["unexpected_keys"]
    backbone, info = GnResNetBackbone.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    classifier.save_pretrained(tmp_path / "classifier")
    backbone.save_pretrained(tmp_path / "backbone")
    expected = model(images()).last_hidden_state
    assert torch.equal(backbone.eval()(images()).feature_maps[-1], expected)
    for name in ("classifier", "backbone"):
        again, info = GnResNetModel.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not info["missing_keys"]
        assert torch.equal(again(images()).last_hidden_state, expected)


def test_classifier():
    model, labels = randomised(GnResNetForImageClassification(tiny())), torch.tensor([1, 4])
    output = model(images(), labels=labels)
    features = model.resnet(images()).pooler_output
    torch.testing.assert_close(output.logits, features @ model.classifier.weight.T + model.classifier.bias)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    accumulated = model(images(), labels=labels, num_items_in_batch=8).loss
    torch.testing.assert_close(accumulated, F.cross_entropy(output.logits, labels, reduction="sum") / 8)
    without_classes = randomised(GnResNetForImageClassification(tiny(num_labels=0)))
    assert without_classes(images()).logits.shape == (2, 64)


def test_backbone_gives_out_the_named_stages(tmp_path):
    backbone = randomised(GnResNetBackbone(tiny(out_features=["stem", "stage3"])))
    states = backbone.resnet(images(), output_hidden_states=True).hidden_states
    output = backbone(images())
    assert output.hidden_states is None and backbone.channels == [8, 64] and backbone.out_indices == [0, 3]
    assert [torch.equal(a, b) for a, b in zip(output.feature_maps, states[::3], strict=True)] == [True, True]
    assert len(backbone(images(), output_hidden_states=True).hidden_states) == 4
    backbone.save_pretrained(tmp_path)
    again = GnResNetBackbone.from_pretrained(tmp_path, out_features=["stage1", "stage2"])
    assert again.out_indices == [1, 2] and again.channels == [16, 32]
    assert GnResNetConfig(out_indices=(1, -1)).out_features == ["stage1", "stage4"]
    assert type(AutoBackbone.from_config(tiny())) is GnResNetBackbone


@pytest.mark.parametrize("model_class", CLASSES)
def test_outputs_follow_the_configuration_and_the_call(model_class):
    first = {"GnResNetModel": 2}.get(model_class.__name__, 1)  # outputs before the hidden states
    model = model_class(tiny()).eval()
    assert len(model(images(), return_dict=False)) == first
    assert len(model(images(), return_dict=False, output_hidden_states=True)) == first + 1
    model = model_class(tiny(output_hidden_states=True, return_dict=False)).eval()
    assert len(model(images())) == first + 1 and len(model(images())[-1]) == 4
    assert len(model(images(), output_hidden_states=False)) == first
    assert len(model(images(), return_dict=True).hidden_states) == 4


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(reentrant):
    model, pixels = randomised(GnResNetForImageClassification(tiny())).train(), images().requires_grad_()
    labels, gradients, calls = torch.tensor([0, 3]), [], []
    block = model.resnet.encoder.stages[1].layers[0]
    block.layer[0].convolution.register_forward_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        if checkpointing:
            enable_activation_checkpointing(model, use_reentrant=reentrant)
        model.zero_grad()
        model(pixels, labels=labels).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert len(calls) == 3 and all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_bfloat16(tmp_path):
    model = randomised(GnResNetModel(tiny()))
    model.save_pretrained(tmp_path)
    half = GnResNetModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    output = half(images().bfloat16())
    assert half.dtype == output.pooler_output.dtype == torch.bfloat16
    torch.testing.assert_close(output.pooler_output.float(), model(images()).pooler_output, rtol=0.1, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(images()).pooler_output).all()


def test_computes_with_the_tensors_of_another_model():
    model = randomised(GnResNetModel(tiny()))
    with torch.device("meta"):
        shell = GnResNetModel(tiny()).eval()
    assert all(parameter.is_meta for parameter in shell.parameters())
    output = functional_call(shell, dict(model.named_parameters()), (images(),))
    assert torch.equal(output.pooler_output, model(images()).pooler_output)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": [3, 4, 6]}, "hidden_sizes has 4 stages and depths 3"),
        ({"depths": [3, 0, 6, 3]}, r"depths is \[3, 0, 6, 3\]: give one number for each stage, from 1 to"),
        ({"hidden_sizes": [], "depths": []}, r"hidden_sizes is \[\]: give one number for each stage"),
        ({"hidden_sizes": [256, 500, 1024, 2048]}, "hidden_sizes .* has a width that the 32 groups do not divide"),
        ({"embedding_size": 48}, "embedding_size 48 has a width that the 32 groups do not divide"),
        ({"base_width": 80}, "base_width 80 is a middle width that the 32 groups do not divide"),
        ({"num_groups": 0}, "num_groups is 0: give a number from 1 to"),
        ({"image_size": -1}, "image_size is -1: give a number from 1 to"),
        ({"hidden_act": "foo"}, "hidden_act 'foo' is not an activation"),
        ({"out_features": ["stage5"]}, "out_features"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        GnResNetConfig(**fields)


def test_configuration():
    config = GnResNetConfig(hidden_sizes=(64, 128), depths=(1, 2), base_width=96)
    assert config.hidden_sizes == [64, 128] and config.depths == [1, 2] and config.middle_widths == [96, 192]
    assert config.stage_names == ["stem", "stage1", "stage2"] and config.hidden_size == 128 and config.num_stages == 2
    assert GnResNetConfig.from_dict(json.loads(config.to_json_string())).to_dict() == config.to_dict()


REMOTE = """
import json, sys
from pathlib import Path

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "poa_hf":
            raise ModuleNotFoundError("No module named 'poa_hf'")

sys.meta_path.insert(0, Blocked())
import huggingface_hub, torch
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification
huggingface_hub.HfApi.repo_exists = lambda *args, **kwargs: True  # AutoBackbone asks the Hub even for a folder

folder = Path(sys.argv[1])
pixels = torch.load(folder / "pixels.pt")
try:
    AutoModel.from_pretrained(folder / "model", trust_remote_code=False)
except ValueError as error:
    print("refused", type(error).__name__)
for name in ("model", "classifier", "backbone"):
    assert AutoConfig.from_pretrained(folder / name, trust_remote_code=True).base_width == 12
    model = AutoModel.from_pretrained(folder / name, trust_remote_code=True)
    print(name, torch.equal(model(pixels).pooler_output, torch.load(folder / "features.pt")))
backbone = AutoBackbone.from_pretrained(folder / "model", trust_remote_code=True, out_features=["stage2"])
print("maps", tuple(backbone(pixels).feature_maps[0].shape))
classifier = AutoModelForImageClassification.from_pretrained(folder / "model", trust_remote_code=True, num_labels=2)
optimizer = torch.optim.SGD(classifier.parameters(), lr=0.1)
classifier.train()(pixels, labels=torch.tensor([0, 1])).loss.backward()
optimizer.step()
classifier.save_pretrained(folder / "tuned")
again = AutoModelForImageClassification.from_pretrained(folder / "tuned", trust_remote_code=True)
print("tuned", torch.equal(again(pixels).logits, classifier.eval()(pixels).logits))
torch.save(again(pixels).logits, folder / "logits.pt")
assert "poa_hf" not in sys.modules
"""


def check_code(folder):
    assert {path.name for path in folder.glob("*.py")} == CODE
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_gn_resnet.GnResNetConfig",
        "AutoModel": "modeling_gn_resnet.GnResNetModel",
        "AutoModelForImageClassification": "modeling_gn_resnet.GnResNetForImageClassification",
        "AutoBackbone": "modeling_gn_resnet.GnResNetBackbone",
    }


@pytest.mark.slow
def test_loads_and_fine_tunes_without_poa_hf(tmp_path):
    model = randomised(GnResNetModel(tiny()))
    model.save_pretrained(tmp_path / "model")
    for name, model_class in (("classifier", GnResNetForImageClassification), ("backbone", GnResNetBackbone)):
        model_class.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / name)
    for name in ("model", "classifier", "backbone"):
        check_code(tmp_path / name)
    torch.save(images(), tmp_path / "pixels.pt")
    torch.save(model(images()).pooler_output.detach(), tmp_path / "features.pt")
    result = run_python("-c", REMOTE, str(tmp_path), env={"HF_HOME": str(tmp_path / "home")})
    assert result.stdout.split("\n")[:-1] == [
        "refused ValueError",
        "model True",
        "classifier True",
        "backbone True",
        "maps (2, 32, 8, 8)",
        "tuned True",
    ]
    check_code(tmp_path / "tuned")
    tuned = AutoModelForImageClassification.from_pretrained(tmp_path / "tuned")  # here without trust_remote_code
    assert type(tuned) is GnResNetForImageClassification
    assert torch.equal(tuned(images()).logits, torch.load(tmp_path / "logits.pt"))


def test_a_saved_model_points_at_its_own_code(tmp_path):
    config = tiny(auto_map={"AutoModel": "someone/else--modeling_gn_resnet.GnResNetModel"})
    GnResNetModel(config).save_pretrained(tmp_path / "model")
    check_code(tmp_path / "model")
    config.save_pretrained(tmp_path / "config")
    check_code(tmp_path / "config")


class SubclassConfig(GnResNetConfig):
    model_type = "gn_resnet_subclass"

    extra: int = 1


class SubclassModel(GnResNetModel):
    config_class = SubclassConfig


def test_a_subclass_takes_no_code_along(tmp_path):
    SubclassModel(tiny(SubclassConfig, extra=2)).save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py")) and "auto_map" not in json.loads((tmp_path / "config.json").read_text())
    config = SubclassModel.from_pretrained(tmp_path).config
    assert type(config) is SubclassConfig and config.extra == 2
