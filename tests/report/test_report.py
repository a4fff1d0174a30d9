"""`poa report`: the page of runs of every family, of runs that lack something, and of hostile ones."""

import io
import json
import math
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from poa_hf import PoaConfig, PoaViTConfig
from poa_hf.cli.main import run
from poa_hf.cli.report import report
from poa_hf.data.processor import evaluation_processor
from poa_hf.models.configuration_poa_resnet import PoaResNetConfig
from poa_hf.report.live import LivePage
from poa_hf.report.page import write_report
from poa_hf.report.pictures import three_sizes
from poa_hf.runs.evaluations import save_evaluations
from poa_hf.runs.layout import ENTRIES

from ..conftest import slow_but, tiny_config
from ..test_contract import tiny
from .pages import Page, evaluation

SECTIONS = ["quality", "pareto", "sizes", "loss", "collapse", "crops", "pictures"]


def saved(family: str, folder):
    model = tiny(family)
    model.save_pretrained(folder)
    side = model.config.backbone_config.image_size
    evaluation_processor(side, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).save_pretrained(folder)
    return folder, model.config.backbone_config.space


def check(path) -> Page:
    """Complete, and nothing is loaded from elsewhere; the pictures lie beside it and are whole."""
    page = Page(path)
    assert page.sections == SECTIONS
    assert all(link.startswith(("data:", "#")) for link in page.loads)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttp", path.read_text())
    pictures = {picture.name: picture.read_bytes() for picture in path.parent.glob("*.png")}
    for content in pictures.values():
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            assert image.format == "PNG" and np.asarray(image.convert("RGBA"))[..., 3].any()
    drawn = re.findall(r'data-chart="([^"]+)"', path.read_text())
    assert {f"{name}{dark}.png" for name in drawn for dark in ("", "-dark")} <= {*pictures}
    [report] = [entry for entry in ENTRIES if entry.pattern == "report"]
    assert report.own(path.parent) == [path.parent], "overwriting the run would leave some of the report's files"
    return page


def test_a_run_without_evaluations(trained, tmp_path, capsys):
    assert run(report, [str(trained), "--images", "2"]) == 0
    page = check(trained / "report" / "index.html")
    space = tiny_config().backbone_config.space
    assert [row[0] for row in page.rows if row and row[0]] == list(map(str, space))
    assert page.commands.count(f"poa evaluate {trained} --dataset_name DATASET --sizes all") == 2
    assert f"poa select {trained} --device cpu" in page.commands
    assert "poa pretrain --config FILE.yaml --eval_steps 1000" in page.commands
    assert "No size has been measured yet" in page.text and "4 of 4" in page.text
    names = {path.stem for path in (trained / "report").glob("*.png")}
    assert {"loss", "loss-dark", "loss-terms", "feature-spread", "effective-rank", "teacher-entropy"} < names
    assert {"crops", "attention", "patch-pca"} < names
    out = capsys.readouterr().out
    assert out.count("poa evaluate") == 2 and out.splitlines()[-1].startswith(f"{trained / 'report' / 'index.html'}: ")


def test_a_measured_run(trained, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("report"))
    config = tiny_config().backbone_config
    sizes = list(config.space)
    save_evaluations(copy, [evaluation(str(size), 0.5 + 0.01 * i) for i, size in enumerate(sizes)])
    save_evaluations(copy, [evaluation(str(sizes[0]), 0.1, step=2), evaluation(str(sizes[1]), 0.75, settings={"k": 5})])
    measured = {str(size): {"median_ms": 1.5, "iqr_ms": 0.1, "images_per_second": 600} for size in sizes[:3]}
    latency = {"device": "cpu", "batch_size": 1, "compiled": False, "measured": measured}
    latency["architecture"] = config.stock_config(config.space.full).to_diff_dict()
    (copy / "latency-cpu-b1.json").write_text(json.dumps(latency))
    (copy / "latency-cpu-b2.json").write_text("[]")  # broken: left out
    knn = [{"step": step, "knn_mean": step / 10, "knn_16x1": step / 9} for step in (1, 2)]
    with open(copy / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in knn)
        file.write('{"step": 3, "lo')  # killed while it wrote
    page = check(write_report(copy, tmp_path / "out", num_images=1))
    rows = {row[0]: row[1:] for row in page.rows if row and row[0]}
    assert rows[str(sizes[0])][3:] == ["1.5", "", "50.0"] and rows[str(sizes[1])][3:] == ["1.5", "75.0", "51.0"]
    assert rows[str(sizes[-1])][3] == ""
    assert page.commands == []
    names = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert {"quality-1", "pareto-parameters", "pareto-flops", "pareto-latency-1", "knn"} < names
    assert "the 3 sizes whose latency was measured" in page.text


@pytest.mark.parametrize("family", slow_but(["swin", "resnet", "dinov2_registers"], "resnet"))
def test_saved_models_of_other_families(family, tmp_path):
    folder, space = saved(family, tmp_path / "run")
    page = check(write_report(folder, dataset_name="textures", num_images=2))
    assert len([row for row in page.rows if row and row[0]]) == len(space)
    assert page.text.count("The run has no log") == 2
    has_class_token = family not in ("swin", "resnet")
    assert ("no class token" in page.text) is not has_class_token
    pictures = folder / "report"
    assert (pictures / "patch-pca.png").exists() and (pictures / "attention.png").exists() is has_class_token


def test_a_run_without_a_model(trained, tmp_path):
    (tmp_path / "metrics.jsonl").write_text((trained / "metrics.jsonl").read_text())
    page = check(write_report(tmp_path))
    assert page.text.count("holds no model yet") == 5 and (tmp_path / "report" / "loss.png").exists()


def test_bad_input(trained, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="does not exist"):
        write_report(tmp_path / "nothing")
    with pytest.raises(ValueError, match="neither a model nor a run's log"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="The folder ./none does not exist"):
        write_report(trained, tmp_path / "out", dataset_name="./none")
    with pytest.raises(ValueError, match="0 images"):
        write_report(trained, num_images=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file: give another --output"):
        write_report(trained, tmp_path / "file")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("<p>mine")
    with pytest.raises(ValueError, match="is another page"):
        write_report(trained, tmp_path / "site")
    (tmp_path / "broken").mkdir()
    shutil.copy(trained / "metrics.jsonl", tmp_path / "broken")
    (tmp_path / "broken" / "evaluations.json").write_text("{")
    assert "cannot be read as evaluations" in Page(write_report(tmp_path / "broken")).text
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"install poa_hf\[plots\]"):
        write_report(trained)


def test_three_sizes_without_three_names():
    sizes = three_sizes(PoaResNetConfig().space)
    assert list(map(str, sizes)) == ["64x3-4-6-3", "64x3-4-23-3", "64x3-8-36-3"]


def test_the_evaluations_of_a_run_are_a_choice(trained, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("report"))
    sizes = list(map(str, tiny_config().backbone_config.space))
    records = [evaluation(size, 0.5 + 0.01 * index) for index, size in enumerate(sizes)]
    records += [
        evaluation(size, 0.2, dataset="birds", test_images=9, holdout=0.2, holdout_seed=0) for size in sizes[:2]
    ]
    records += [evaluation(sizes[0], 0.7, task="linear", metric="linear_accuracy", settings={})]
    save_evaluations(copy, records)
    page = LivePage([copy]).page()
    options = re.findall(r"<option[^>]*>([^<]*)", page)
    assert options == ["20-NN accuracy, 20 % of test", "20-NN accuracy, test", "Linear probe accuracy, test"]
    assert re.findall(r'optgroup label="(\w+)"', page) == ["birds", "textures"]
    shown = [part.split(">")[0] for part in page.split("<div data-choice=")[1:]]
    assert shown == ['"0"', '"1" hidden', '"2" hidden'] * 2  # for quality over sizes, and against cost
    assert f"Best: {sizes[-1]} with {50 + len(sizes) - 1}.0 %. {sizes[0]} reaches" in page
    first = LivePage([copy], quality="linear").page().split('<div data-choice="0">')[1]
    assert first.lstrip().startswith("<p>Linear probe accuracy on textures")


def test_a_hostile_run(trained, tmp_path):
    """Names are text, never markup, and values of other kinds are left out."""
    evil = '"><img src=x onerror=alert(1)></script><script>alert(1)</script>'
    folder = tmp_path / "<b>run"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("report"))
    size = str(tiny_config().backbone_config.space.smallest)
    save_evaluations(folder, [evaluation(size, 0.5, dataset=evil, test_split=evil), evaluation(size, 0.6)])
    lines = [
        {"step": 5, "loss": "much", f"teacher_entropy_{evil}": 0.5, "feature_spread": 0.5, "effective_rank": 9.0},
        {"step": 6, "loss": 10**400, f"knn_{evil}": 0.5, "learning_rate": [1], "dino_local_crops_loss_0": {}},
        {"step": 10**400, "loss": 1.0},
    ]
    with open(folder / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    arguments = json.loads((folder / "training_args.json").read_text())
    (folder / "training_args.json").write_text(json.dumps(arguments | {"max_steps": evil}))
    (folder / "config.yaml").write_text("dataset_name: [a, b]\neval_dataset_name: 7\n")
    path = write_report(folder, tmp_path / "out", "textures", num_images=1)
    page = check(path)
    assert page.tags.count("script") == 1
    assert evil in page.text and "<b>run" in page.text and "onerror" not in page.attributes


def test_any_task_is_shown_first_and_sizes_that_were_not_measured_are_predicted(tmp_path, capsys):
    backbone = PoaViTConfig(
        hidden_size=64, num_hidden_layers=6, num_attention_heads=4, min_hidden_size=32, min_num_hidden_layers=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    PoaConfig(backbone_config=backbone).save_pretrained(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "loss": 2.0}\n')
    measured = [size for size in backbone.space if size.width != 48 and size.depths[0] != 3]
    values = {str(size): 0.1 * math.log(size.width) + 0.05 * math.log(size.depths[0]) for size in measured}
    records = [evaluation(size, value, dataset="imagenet-1k") for size, value in values.items()]
    fields = dict(task="clustering", metric="clustering_nmi", settings={})
    records += [evaluation(size, value / 2, interval=[0.0, 0.5], **fields) for size, value in values.items()]
    save_evaluations(tmp_path, records)

    def shown(task):
        page = LivePage([tmp_path], quality=task).page()
        return page.split('<div data-choice="0">')[1].partition('<div data-choice="1"')[0]

    first = shown("clustering")
    assert "Clustering NMI on textures" in first and "paper" not in first and "20-NN accuracy on" in shown("knn")
    # the predicted value of 48x3, which is on the line between its neighbours in logarithms
    value = 0.1 * math.log(48) + 0.05 * math.log(3)
    assert f">~{100 * value / 2:.1f}</td>" in first and f">~{100 * value:.1f}</td>" in shown(None)
    assert "repeating-linear-gradient" in first and "fitted to 8 sizes" in first
    page = LivePage([tmp_path]).page()
    assert "paper: ViT" in page and page.count('class="bar"') == 2 * len(measured)
    assert run(report, [str(tmp_path), "--task", "taste"]) == 2
    assert "'taste' is neither a task nor a metric: choose from knn, linear" in capsys.readouterr().err
    assert "measured yet by a linear probe" in LivePage([tmp_path], quality="linear").page()
    # as tables and poa select call them
    assert shown("NMI") == shown("clustering NMI") == first and shown("20-NN") == shown("knn")
    with pytest.raises(ValueError, match="'5-NN' is neither a task nor a metric"):
        LivePage([tmp_path, tmp_path / "later"], quality="5-NN")
