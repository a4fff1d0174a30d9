"""Models that anybody may have saved: read without running anything of theirs, or refused in one sentence."""

import ast
import builtins
import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Dinov2Config, Dinov2Model

from poa_hf.data.processor import evaluation_processor
from poa_hf.models.saved import load_saved_config, load_saved_model, load_saved_processor

from ..conftest import ROOT

# The classes of transformers, datasets and timm whose loading methods can run what they find, or ask whether to.
LOADING = {"from_pretrained", "from_config"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved") / "sound"
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
    Dinov2Model(config).save_pretrained(folder)
    evaluation_processor(32).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path, monkeypatch):
    def answer(*words):
        raise AssertionError("a question was asked")

    monkeypatch.setattr(builtins, "input", answer)
    copy = tmp_path / "model"
    shutil.copytree(sound, copy)
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    yield copy
    assert not (tmp_path / "canary").exists()


def change(folder, file="config.json", **fields):
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **fields}))


def refusal(load, *arguments):
    with pytest.raises(ValueError) as error:
        load(*arguments)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 700
    return text


CODE = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoImageProcessor": "evil.P"}


def test_a_model_of_a_known_type_is_loaded_without_its_code(folder):
    for file in ("config.json", "preprocessor_config.json"):
        change(folder, file, auto_map=CODE)
    model, missing, unexpected = load_saved_model(AutoModel, folder)
    assert isinstance(model, Dinov2Model) and not missing and not unexpected
    assert load_saved_processor(folder).crop_size["height"] == 32


@pytest.mark.parametrize("model_type", ["evil", None, 3, ["dinov2"]])
def test_a_model_that_needs_code_of_its_own_is_refused(folder, model_type):
    change(folder, model_type=model_type, auto_map=CODE)
    assert "needs code of its own for its model" in refusal(load_saved_model, AutoModel, folder)
    assert "needs code of its own for its model" in refusal(load_saved_config, folder)
    change(folder, auto_map=None)
    assert ("is of the type" if model_type else "has no model_type") in refusal(load_saved_config, folder)


def test_an_image_processor_that_needs_code_of_its_own_is_refused(folder):
    change(folder, "preprocessor_config.json", image_processor_type="Evil", auto_map=CODE)
    assert "needs code of its own for its image processor" in refusal(load_saved_processor, folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"attn_implementation": "someone/kernel"}, "asks for the attention 'someone/kernel'"),
        ({"_attn_implementation": "kernels-community/flash-attn"}, "code from the Hub"),
        ({"backbone_config": {"_attn_implementation_internal": "a/b"}}, "asks for the attention 'a/b'"),
        ({"_attn_implementation": {"": "a/b"}}, "asks for the attention"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "is quantised"),
        ({"transformers_weights": "../other.safetensors"}, "reads its weights from another file"),
        ({"configuration_files": ["config.4.0.0.json"]}, "reads its configuration from another file"),
        ({"text_config": {"use_pretrained_backbone": True}}, "fetches the weights of another model"),
        ({"hidden_size": 10**9}, "has hidden_size 1000000000, which no model has"),
        ({"num_hidden_layers": 10**6}, "more layers than any model has"),
        ({"depths": [2] * 10_001}, "more layers than any model has"),
        ({"hidden_act": "evil"}, "cannot be loaded (KeyError: 'evil')"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"patch_size": 0}, "ZeroDivisionError"),
        ({"hidden_size": 64}, "config.json describes (1, 1, 64)"),
    ],
    ids=str,
)
def test_configurations_that_reach_elsewhere_or_do_not_fit_are_refused(folder, fields, words):
    change(folder, **fields)
    assert words in refusal(load_saved_model, AutoModel, folder)


def test_names_of_classes_are_not_taken_for_fields(folder):
    names = ["depth", "onion layers", "hidden_size", "quantization_config", "attn_implementation"]
    places = [20_000, 10_001, 12_345, 3, 4]
    id2label = dict(zip(map(str, places), names, strict=True))
    change(folder, id2label=id2label, label2id=dict(zip(names, places, strict=True)))
    assert load_saved_model(AutoModel, folder)[0].config.id2label == dict(zip(places, names, strict=True))


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '{"model_type": ' + "[" * 100_000, "\xff"], ids=repr)
def test_files_that_are_no_configuration_are_refused(folder, content):
    for file, load in (("config.json", load_saved_config), ("preprocessor_config.json", load_saved_processor)):
        (folder / file).write_bytes(content.encode("latin1"))
        assert file in refusal(load, folder)


def test_a_configuration_of_many_megabytes_is_not_read(folder):
    change(folder, padding="x" * (17 << 20))
    assert "larger than 16 MiB" in refusal(load_saved_config, folder)


class Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.gguf", "weights.pth"])
def test_pickled_weights_are_not_read(folder, tmp_path, file):
    (folder / "model.safetensors").rename(folder.parent / "sound.safetensors")
    (folder / file).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    text = refusal(load_saved_model, AutoModel, folder)
    assert f"has its weights in {file}" in text and "save_pretrained" in text


def test_an_adapter_does_not_load_its_base_model(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    assert "holds an adapter" in refusal(load_saved_model, AutoModel, folder)


@pytest.mark.parametrize(
    "named", ["../sound.safetensors", "/etc/passwd", "sub/a.safetensors", "..", "", "pytorch_model.bin", 3, None]
)
def test_an_index_names_files_of_its_folder_only(folder, named):
    (folder / "model.safetensors").rename(folder.parent / "sound.safetensors")
    names = load_file(folder.parent / "sound.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, named)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "is not a safetensors file of that folder" in refusal(load_saved_model, AutoModel, folder)


def test_weights_that_declare_more_than_they_hold_are_refused_before_memory_is_spent(folder):
    header = {"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}
    content = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(content).to_bytes(8, "little") + content + bytes(64))
    assert "cannot be loaded" in refusal(load_saved_model, AutoModel, folder)
    (folder / "model.safetensors").write_bytes((1 << 62).to_bytes(8, "little") + b"{}")
    assert "cannot be loaded" in refusal(load_saved_model, AutoModel, folder)


def test_a_configuration_that_describes_more_than_the_weights_hold_is_refused(folder):
    save_file({}, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder, hidden_size=2**20)
    text = refusal(load_saved_model, AutoModel, folder)
    assert "parameters in its config.json, and its weights hold 0" in text


def test_weights_that_are_not_finite_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["layernorm.bias"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert "layernorm.bias" in refusal(load_saved_model, AutoModel, folder)


@pytest.mark.parametrize("fields", [{"crop_size": {"height": 10**9, "width": 8}}, {"size": {"shortest_edge": 10**6}}])
def test_image_processors_that_would_fill_the_memory_are_refused(folder, fields):
    change(folder, "preprocessor_config.json", **fields)
    assert "larger than the images of any model" in refusal(load_saved_processor, folder)


def test_every_call_that_could_run_code_says_that_it_must_not():
    """`from_pretrained` is called in one module only, and every other call that takes it has trust_remote_code."""
    wrong = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if ast.unparse(node.func.value) == "super()":  # an override, which passes on what it was given
                continue
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            place = f"{path.relative_to(ROOT)}:{node.lineno}"
            if node.func.attr == "from_pretrained" and path.name != "saved.py":
                wrong.append(place)
            elif node.func.attr in LOADING:
                trust = given.get("trust_remote_code")
                refused = isinstance(trust, ast.Constant) and trust.value is False
                local = any(keyword.arg is None and ast.unparse(keyword.value) == "_LOCAL" for keyword in node.keywords)
                if not refused and not local:
                    wrong.append(place)
            elif node.func.attr == "load" and ast.unparse(node.func.value) in ("torch", "np", "numpy", "pickle"):
                safe = given.get("weights_only") or given.get("allow_pickle")
                if not isinstance(safe, ast.Constant) or safe.value is not (node.func.value.id == "torch"):
                    wrong.append(place)
    assert not wrong, f"load these by poa_hf.models.saved, or without code and pickles: {wrong}"
