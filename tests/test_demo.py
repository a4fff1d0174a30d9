"""The demo of examples/demo.py, without a browser: what it computes, and that its page is built and answers."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from poa_hf import PoaForPreTraining, TextureDataset, costs, embed, load_subject
from poa_hf.embedding.nearest import nearest

from .conftest import FAMILIES, ROOT, golden_config, save_run, slow_but

pytest.importorskip("gradio", reason="Gradio (poa_hf[demo]) is not installed")


@pytest.fixture(scope="module")
def demo():
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def saved(family: str, folder: Path) -> str:
    return str(save_run(PoaForPreTraining(golden_config(family)), folder / "run"))


@pytest.mark.parametrize("family", slow_but(FAMILIES, "vit"))
def test_every_stop_of_the_slider_shows_the_largest_size_within(demo, family, tmp_path):
    looker = demo.Looker(saved(family, tmp_path), count=4)
    counts = {str(size): cost.parameters for size, cost in costs(looker.config).items()}
    low, high = looker.range
    for limit in np.linspace(low, high, 7):
        assert counts[looker.size(limit)] == max(count for count in counts.values() if count <= limit)
    assert looker.size(0) == str(looker.config.space.smallest)
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    attention, components = looker.look(photograph, looker.size(low))
    assert (attention is None) == (family != "vit")
    for shown in filter(None, (attention, components)):
        assert shown.size == (demo.SIDE, demo.SIDE) and np.asarray(shown).std() > 0


def test_nearest_images_are_those_of_poa_embed(demo, tmp_path):
    run = saved("vit", tmp_path)
    looker = demo.Looker(run, count=12)
    tried = len(looker.to_try)  # these come first, and are not found
    embeddings = embed(load_subject(run), TextureDataset(length=tried + 12), tmp_path / "embeddings", size="32x2")
    expected = nearest(embeddings, torch.from_numpy(embeddings.features[3:4]), top=len(embeddings))[0]
    expected = [each for each in expected if each.id >= tried][:6]
    found = looker.nearest(looker.to_try[3], "32x2")
    assert [text for _, text in found] == [f"{each.similarity:.2f}" for each in expected]
    for (image, _), each in zip(found, expected, strict=True):
        assert np.array_equal(image, looker.gallery[each.id - tried].resize((160, 160)))


def test_page_answers_with_and_without_a_photograph(demo, tmp_path):
    page = demo.build(demo.Looker(saved("vit", tmp_path), count=6))
    [function] = {function.fn for function in page.fns.values() if function.fn.__name__ == "show"}
    text, *empty = function(None, 10)
    assert text.startswith("**32x2**") and empty == [None, None, None]
    text, attention, components, found = function(TextureDataset()[0]["image"], 1e9)
    assert text.startswith("**64x4**") and "100% of the full size" in text
    assert attention.size == components.size and len(found) == 6


def test_models_of_one_size_are_refused(demo, tmp_path):
    model = PoaForPreTraining(golden_config("vit")).teacher.extract("32x2")
    model.save_pretrained(tmp_path / "one")
    load_subject(saved("vit", tmp_path)).processor.save_pretrained(tmp_path / "one")
    with pytest.raises(ValueError, match="has only one size"):
        demo.Looker(str(tmp_path / "one"))


def test_mistakes_are_said_in_a_sentence(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("POA_MODEL", raising=False)
    for arguments, said in (([], "name a model"), (["run", "--gallery_images", "0"], "give at least 1")):
        with pytest.raises(SystemExit) as ended:
            demo.parse(arguments)
        assert ended.value.code == 2 and said in capsys.readouterr().err
    with pytest.raises(ValueError, match="missing"):
        demo.Looker(str(tmp_path / "missing"))


def test_a_space_names_model_and_gallery_by_variables(demo, monkeypatch):
    monkeypatch.setenv("POA_MODEL", "me/family")
    monkeypatch.setenv("POA_DATASET", "me/photos")
    options = demo.parse([])
    assert (options.model, options.dataset_name) == ("me/family", "me/photos")
