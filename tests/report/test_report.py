"""`poa report`: the page of runs of every family, of runs that lack something, and in a browser."""

import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from poa_hf import PoaForPreTraining, PoaTrainer, PoaTrainingArguments
from poa_hf.cli.main import run
from poa_hf.cli.report import report
from poa_hf.data.processor import evaluation_processor
from poa_hf.data.textures import TextureDataset
from poa_hf.figures import charts
from poa_hf.models.configuration_poa_resnet import PoaResNetConfig
from poa_hf.report.page import write_report
from poa_hf.report.pictures import three_sizes
from poa_hf.runs.evaluations import Evaluation, save_evaluations

from ..conftest import slow_but, tiny_config
from ..test_contract import tiny

SECTIONS = ["quality", "pareto", "sizes", "loss", "collapse", "crops", "pictures"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Page(HTMLParser):
    """What tests ask of a page: its sections, the table's rows, what it loads and its commands."""

    def __init__(self, path):
        super().__init__()
        self.sections, self.loads, self.rows, self.text, self.commands = [], [], [], "", []
        self.inside = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.inside.append(tag)
        if tag == "section":
            self.sections.append(attributes["id"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "code":
            self.commands.append("")
        self.loads += [attributes[name] for name in ("src", "srcset", "href", "data") if name in attributes]

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self.inside and self.inside[-1] in ("style", "script"):
            return
        self.text += " ".join(data.split()) + " "
        if "code" in self.inside:
            self.commands[-1] += data
        if "tbody" in self.inside and {"td", "th"} & set(self.inside):
            self.rows[-1][-1] += data


def evaluation(size: str, value: float, step: int = 4, **more) -> Evaluation:
    fields = dict(model="run", task="knn", metric="knn_accuracy", dataset="textures", test_split="test")
    fields |= dict(test_images=30, date="2026-01-01", settings={"k": 20})
    return Evaluation(size=size, value=value, step=step, **fields | more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A ViT trained for 4 steps, without evaluations."""
    folder = tmp_path_factory.mktemp("report") / "run"
    torch.manual_seed(0)
    args = PoaTrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=4, warmup_steps=1, num_local_crops=2,
        global_crop_size=32, local_crop_size=16, dataloader_num_workers=0, masked_prediction_start_step=1,
        logging_steps=1, save_steps=4, disable_tqdm=True,
    )  # fmt: skip
    PoaTrainer(PoaForPreTraining(tiny_config()), args, TextureDataset()).train()
    return folder


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


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize(
    ("width", "dark"),
    [(390, True), (1440, False), *(pytest.param(*way, marks=pytest.mark.slow) for way in [(390, False), (1440, True)])],
)
def test_in_a_browser(trained, tmp_path, width, dark):
    """Nothing but the boxes made for it is wider than the page, a click sorts the table, and text and charts are those
    of the reader's colour scheme."""
    page = write_report(trained, tmp_path / "out", num_images=2)
    script = (
        "<script>document.querySelectorAll('thead button')[2].click();"
        "const all = document.documentElement, rows = [...document.querySelectorAll('tbody th')];"
        "document.title = JSON.stringify([all.scrollWidth, innerWidth, rows.map(row => row.textContent),"
        "document.querySelectorAll('thead th')[2].getAttribute('aria-sort'),"
        "[...document.images].every(image => image.naturalWidth > 0),"
        "getComputedStyle(document.querySelector('[data-chart=loss] path[stroke]')).stroke,"
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]])</script>"
    )
    page.write_text(page.read_text().replace("</body>", f"{script}</body>"))
    # a window of Chromium is never as narrow as a phone, a frame can be
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<body style='margin:0'><iframe id=f src='out/index.html' style='width:{width}px;height:900px;border:0'>"
        "</iframe><script>f.onload = () => document.title = f.contentDocument.title</script>"
    )
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    options += ["--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(width, 500)},900"]
    options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    options += ["--virtual-time-budget=5000", "--dump-dom", frame.as_uri()]
    result = subprocess.run([CHROMIUM, *options], capture_output=True, text=True, timeout=100)
    found = re.search(r"<title>(.*?)</title>", result.stdout)
    assert found, result.stderr[-2000:]
    wide, window, rows, sorted_, loaded, line, colors = json.loads(found[1])
    assert window == width and wide <= width and sorted_ == "descending" and loaded
    assert rows[0] == "32x3" and rows[-1] == "16x1"
    ink, page_color = (sum(map(int, re.findall(r"\d+", color)[:3])) / 765 for color in colors)
    assert (ink > 0.8 and page_color < 0.2) if dark else (ink < 0.2 and page_color > 0.8)
    theme = charts.DARK if dark else charts.LIGHT
    assert tuple(map(int, re.findall(r"\d+", line))) == tuple(bytes.fromhex(theme.lines[0][1:]))
