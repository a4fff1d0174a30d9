import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from poa_hf import PoaConfig, PoaForPreTraining, PoaResNetConfig
from poa_hf.data.processor import usual_processor
from poa_hf.publishing.export import extract_to
from poa_hf.publishing.formats.format import find_format

from ...conftest import golden_config, run_python, tiny_config
from ...test_contract import tiny
from ..card.helpers import SIZE, blocks, facts_of, loaded, written

RUN = """
import sys
sys.modules["poa_hf"] = None  # importing it fails
import torch
from PIL import Image
torch.set_grad_enabled(False)
found = {}
for format in sys.argv[1:]:
    scope = {"image": Image.open("image.png")}
    exec(open(f"{format}.py").read(), scope)
    found[format] = scope["model"].config.model_type, scope["features"]
torch.save(found, "found")
"""


@pytest.mark.slow
def test_the_code_of_a_card_loads_the_model_without_poa_hf(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8))
    image.save(tmp_path / "image.png")
    expected = {}
    formats_of = {"vit": ("dinov2", "vit"), "swin": ("swin",), "resnet": ("gn_resnet",)}
    for family, formats in (formats_of | {"dinov2_registers": ("dinov2_with_registers",)}).items():
        torch.manual_seed(0)
        config = tiny(family, hidden_size_step=20).config if family not in formats_of else golden_config(family)
        model = PoaForPreTraining(config).eval()
        size = model.config.backbone_config.space.spread[1]
        for format in formats:
            folder = tmp_path / f"poa small é {format}"
            extract_to(model, size, folder, format=format)
            card = loaded(folder)
            (code,) = blocks(card, "python")
            assert code.count("\n") == 5  # imports, a blank line, and three lines
            (tmp_path / f"{format}.py").write_text(code)
            pixels = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
            with torch.no_grad():
                expected[format] = model.teacher(pixels, sub_network=size).pooler_output
            assert f"the shape (1, {expected[format].shape[1]})" in card.text
    env = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    run_python("-I", "-c", RUN, *expected, cwd=tmp_path, env=env)
    for format, (model_type, features) in torch.load(tmp_path / "found").items():
        assert model_type == format
        torch.testing.assert_close(features, expected.pop(format), rtol=1e-4, atol=1e-5)
    assert not expected


def timm_resnet() -> PoaForPreTraining:
    """A small ResNet whose channels timm has."""
    backbone = PoaResNetConfig(depths=[1, 2, 1, 1], min_depths=[1, 1, 1, 1], base_width=64, min_base_width=32)
    return PoaForPreTraining(PoaConfig(backbone_config=backbone, num_prototypes=[8], head_hidden_size=8)).eval()


def test_the_code_of_a_timm_card(tmp_path):
    extract_to(PoaForPreTraining(tiny_config()), SIZE, tmp_path / "poa-timm", format="timm", facts=facts_of())
    card = loaded(tmp_path / "poa-timm")
    assert card.data.library_name == "timm" and {"timm", "transformers"} <= set(card.data.tags)
    assert 'image.convert("RGB")' in card.text  # timm's transforms leave the channels as they are
    of_timm, of_transformers = blocks(card, "python")
    assert 'timm.create_model("local-dir:poa-timm", pretrained=True)' in of_timm and "transformers" not in of_timm
    assert 'AutoModel.from_pretrained("poa-timm")' in of_transformers and "trust_remote_code" not in card.text
    for code in (of_timm, of_transformers):
        compile(code, "card", "exec")
    assert '"hf-hub:me/poa-timm"' in find_format("gn_resnet", "timm").snippet("me/poa-timm")


@pytest.mark.slow
def test_the_code_of_a_timm_card_gives_the_features_in_timm_and_transformers(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm", exc_type=ImportError, reason="needs timm, and a torchvision that it can import")
    model = timm_resnet()
    size = model.config.backbone_config.space.spread[1]
    extract_to(model, size, tmp_path / "poa-timm", format="timm")
    monkeypatch.chdir(tmp_path)
    of_timm, of_transformers = blocks(loaded(tmp_path / "poa-timm"), "python")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8))
    pixels = usual_processor(model.config.backbone_config)(image, return_tensors="pt").pixel_values
    # the image's preparation needs the real torchvision
    monkeypatch.setattr(timm.data, "create_transform", lambda **options: lambda image: pixels[0])
    prepared = {"pixel_values": pixels}
    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", lambda name: lambda image, **options: prepared)
    with torch.no_grad():
        expected = model.teacher(pixels, sub_network=size).pooler_output
        for code in (of_timm, of_transformers):
            scope = {"image": image}
            exec(code, scope)
            torch.testing.assert_close(scope["features"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ['we"ird', "back\\slash", "{braces}", "tick`s ``` ```` more", "é 模型"])
def test_the_code_holds_any_name(tmp_path, name):
    (code,) = blocks(written(tmp_path, facts_of(), name), "python")
    assert f"from_pretrained({json.dumps(name, ensure_ascii=False)})" in code
    compile(code, "card", "exec")
