import json

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, Dinov2Backbone

from poa_hf import PoaForPreTraining, SubNetwork
from poa_hf.cli.main import main
from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.subject import load_subject
from poa_hf.publishing.export import extract_to
from poa_hf.publishing.formats.vit import as_vit
from poa_hf.publishing.release import Release
from poa_hf.runs.load import load_run

from ..conftest import random_batch, run_python, tiny_backbone, tiny_config

SIZE = SubNetwork(16, 2)


@pytest.fixture
def run_folder(tiny_model, tmp_path):
    """A saved model whose teacher differs from its student."""
    with torch.no_grad():
        for parameter in tiny_model.teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    tiny_model.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


LOAD = """
import sys, torch
assert not any("poa_hf" in path for path in sys.path)
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
folder, pixels, image, options = sys.argv[1], torch.load(sys.argv[2]), Image.open(sys.argv[3]), eval(sys.argv[4])
model = AutoModel.from_pretrained(folder, **options)
assert "poa_hf" not in sys.modules
processed = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
assert processed.shape == (1, 3, 32, 32), processed.shape
with torch.no_grad():
    torch.save((type(model).__name__, model(pixels).last_hidden_state), sys.argv[2] + ".out")
"""


@pytest.mark.parametrize(
    ("format", "options"),
    [("dinov2", "{}"), pytest.param("vit", "dict(add_pooling_layer=False)", marks=pytest.mark.slow)],
)
def test_a_fresh_process_loads_what_poa_extract_wrote(run_folder, tmp_path, format, options, capsys):
    output = tmp_path / "small"
    assert main(["extract", str(run_folder), "--size", "16x2", "--format", format, "--output", str(output)]) == 0
    assert "16x2" in capsys.readouterr().out
    pixels = random_batch()["global_crops"]
    torch.save(pixels, tmp_path / "pixels")
    Image.fromarray(np.zeros((50, 60, 3), np.uint8)).save(tmp_path / "image.png")
    run_python("-I", "-c", LOAD, str(output), str(tmp_path / "pixels"), str(tmp_path / "image.png"), options)
    name, features = torch.load(tmp_path / "pixels.out")
    assert name == {"dinov2": "Dinov2Model", "vit": "ViTModel"}[format]
    model = PoaForPreTraining.from_pretrained(run_folder)
    with torch.no_grad():
        expected = model.teacher(pixels, sub_network=SIZE).last_hidden_state
        student = model.student(pixels, sub_network=SIZE).last_hidden_state
    assert not torch.allclose(features, student, atol=1e-3)
    if format == "dinov2":
        assert torch.equal(features, expected)
    else:
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_the_home_folder_is_known_wherever_a_path_is_given(run_folder, tmp_path, monkeypatch, capsys):
    """Shells leave `~` to the program after `=`, and Python always does."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["extract", "~/run", "--size", "16x2", "--output=~/by the command"]) == 0
    extract_to(load_run("~/run"), SIZE, "~/by a function")
    assert not (tmp_path / "~").exists()
    names = ["run", "by the command", "by a function"]
    assert [load_subject(f"~/{name}").name for name in names] == names


def test_vit_folds_layerscale_exactly_but_for_rounding():
    model = PoaForPreTraining(tiny_config(tiny_backbone(layerscale_value=0.3))).double().teacher
    stock = model.extract("small")
    pixels = random_batch()["global_crops"].double()
    torch.testing.assert_close(as_vit(stock)(pixels)[0], stock(pixels)[0], rtol=1e-12, atol=1e-12)


def test_all_sizes_and_names(run_folder, tmp_path):
    assert main(["extract", str(run_folder), "--size", "all", "--output", str(tmp_path / "all")]) == 0
    space = tiny_backbone().space
    assert {path.name for path in (tmp_path / "all").iterdir()} == {str(size) for size in space}
    assert main(["extract", str(run_folder), "--size", "small,large", "--output", str(tmp_path / "two")]) == 0
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"16x1", "32x3"}


def test_the_card_says_what_it_is_and_how_to_load_it(run_folder, tmp_path):
    model = PoaForPreTraining.from_pretrained(run_folder)
    parameters = extract_to(model, SIZE, tmp_path / "poa-small")
    card = ModelCard.load(tmp_path / "poa-small" / "README.md")
    assert card.data.library_name == "transformers" and "self-supervised" in card.data.tags
    assert "16x2" in card.text and "9 sizes" in card.text and f"{parameters:,}" in card.text
    assert 'AutoModel.from_pretrained("poa-small")' in card.text


def test_checkpoints_of_an_unfinished_run_are_read(run_folder, tmp_path):
    run = tmp_path / "unfinished"
    run.mkdir()
    run_folder.rename(run / "checkpoint-20")
    for name in ("trainer_state.json", "data_state_0.json"):
        (run / "checkpoint-20" / name).write_text("{}")
    (run / "checkpoint-30").mkdir()  # not a whole one
    assert main(["extract", str(run), "--size", "small", "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden_size"] == 16


def test_mistakes_are_one_sentence(run_folder, tmp_path, capsys):
    def refused(*argv):
        assert main(["extract", *map(str, argv)]) == 2
        message = capsys.readouterr().err
        assert message.startswith("poa: ") and message.count("\n") == 1
        return message

    output = tmp_path / "out"
    assert "nearest are 16x2" in refused(run_folder, "--size", "17x2", "--output", output)
    assert "does not exist" in refused(tmp_path / "nowhere", "--size", "small", "--output", output)
    (tmp_path / "empty").mkdir()
    assert "holds no model yet" in refused(tmp_path / "empty", "--size", "small", "--output", output)
    assert not output.exists()
    output.mkdir()
    (output / "precious.txt").write_text("kept")
    assert "exists: give another --output" in refused(run_folder, "--size", "small", "--output", output)
    assert "holds more than an extracted model" in refused(
        run_folder, "--size", "small", "--output", output, "--overwrite"
    )
    assert (output / "precious.txt").exists()


def test_the_run_itself_is_never_overwritten(run_folder, tmp_path, capsys):
    for output in (run_folder, run_folder.parent):
        assert main(["extract", str(run_folder), "--size", "small", "--output", str(output), "--overwrite"]) == 2
        assert "holds the run itself" in capsys.readouterr().err
    run_folder = run_folder.rename(tmp_path / "checkpoint-5")  # called as a part of the folder above it
    argv = ["extract", str(run_folder), "--size", "small", "--output", str(run_folder), "--overwrite"]
    assert main(argv) == 2 and "holds the run itself" in capsys.readouterr().err
    output = tmp_path / "small"
    for _ in range(2):  # an extracted model is
        assert main(["extract", str(run_folder), "--size", "small", "--output", str(output), "--overwrite"]) == 0


def test_vit_takes_the_images_of_its_processor(tmp_path):
    model = PoaForPreTraining(tiny_config(tiny_backbone(image_size=64))).eval()
    processor = evaluation_processor(32, [0.5] * 3, [0.5] * 3)
    extract_to(model, SIZE, tmp_path / "vit", format="vit", processor=processor)
    vit = AutoModel.from_pretrained(tmp_path / "vit", add_pooling_layer=False)
    pixels = random_batch()["global_crops"]
    expected = model.teacher(pixels, sub_network=SIZE).last_hidden_state
    torch.testing.assert_close(vit(pixels).last_hidden_state, expected, rtol=1e-4, atol=1e-5)


def test_many_extractions_leave_initialisation_as_it_was(run_folder, tmp_path):
    assert main(["extract", str(run_folder), "--size", "all", "--output", str(tmp_path / "all")]) == 0
    fresh = PoaForPreTraining(tiny_config())
    assert 0.015 < fresh.student.encoder.layer[0].mlp.fc1.weight.std() < 0.025


def test_stock_tasks_load_it(run_folder, tmp_path):
    assert main(["extract", str(run_folder), "--size", "32x2", "--output", str(tmp_path / "model")]) == 0
    classifier, report = AutoModelForImageClassification.from_pretrained(
        tmp_path / "model", num_labels=3, output_loading_info=True
    )
    assert sorted(report["missing_keys"]) == ["classifier.bias", "classifier.weight"]
    backbone = Dinov2Backbone.from_pretrained(tmp_path / "model")
    assert backbone(random_batch()["global_crops"]).feature_maps[0].shape == (8, 32, 4, 4)


def test_a_licence_of_ones_own_goes_along_or_is_missed_before_any_work(run_folder, tmp_path, capsys):
    argv = ["extract", str(run_folder), "--size", "small", "--output", str(tmp_path / "out")]
    (run_folder / "card.yaml").write_text("license: other\nlicense_name: mine-1.0\nlicense_link: LICENSE.md\n")
    assert main(argv) == 2 and not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="LICENSE.md does not exist, which license_link names: put the text"):
        Release.from_run(run_folder, "small", "me")
    (run_folder / "LICENSE.md").write_text("Do what you like.\n")
    for more in ([], ["--overwrite"]):
        assert main([*argv, *more]) == 0
        assert (tmp_path / "out" / "LICENSE.md").read_text() == "Do what you like.\n"
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license_link == "LICENSE.md"


def test_sizes_are_given_as_texts_or_names(tiny_model, tmp_path):
    smallest = tiny_model.config.backbone_config.space.smallest
    sizes = {"named": "small", "text": str(smallest), "value": smallest}
    parameters = [extract_to(tiny_model, size, tmp_path / name) for name, size in sizes.items()]
    assert len(set(parameters)) == 1
    with pytest.raises(ValueError, match="^'tiny' is neither a named size"):
        extract_to(tiny_model, "tiny", tmp_path / "none")
    assert not (tmp_path / "none").exists()
