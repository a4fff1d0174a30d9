"""`poa report RUN1 RUN2`: a page that compares runs."""

import json
import shutil

import pytest

from poa_hf.cli.main import run
from poa_hf.cli.report import report
from poa_hf.report.compare import names_of, write_comparison
from poa_hf.runs.evaluations import save_evaluations

from ..conftest import tiny_config
from .pages import Page, evaluation


@pytest.fixture
def runs(trained, tmp_path):
    """Two runs in one folder, one longer than the other, measured on the same images."""
    sizes = list(map(str, tiny_config().backbone_config.space))
    for name, quality in (("one", 0.5), ("two", 0.4)):
        shutil.copytree(trained, tmp_path / name, ignore=shutil.ignore_patterns("report"))
        save_evaluations(tmp_path / name, [evaluation(size, quality + 0.01 * i) for i, size in enumerate(sizes)])
    with open(tmp_path / "two" / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": 9, "loss": 2.5, "knn_mean": 0.25}) + "\n")
    return tmp_path / "one", tmp_path / "two"


def test_two_runs(runs, tmp_path, capsys):
    one, two = map(str, runs)
    assert run(report, [one, two]) == 0
    path = tmp_path / "report" / "index.html"
    assert capsys.readouterr().out.startswith(f"{path}: 2 runs")
    page = Page(path)
    assert page.sections == ["runs", "quality", "loss"] and not {*page.loads} - {
        "#runs",
        "#quality",
        "#loss",
        "#content",
        "data:,",
    }
    count = len(list(tiny_config().backbone_config.space))
    best = [f"{100 * quality + count - 1:.1f} % (32x3)" for quality in (0.5, 0.4)]
    rows = [row for row in page.rows if row and row[0]]
    assert [[row[0], row[3], row[5], row[-1]] for row in rows] == [
        ["one", str(count), "4 of 4", best[0]],
        ["two", str(count), "9 of 4", best[1]],
    ]
    assert rows[1][6] == "2.500"
    assert f"Best of all: one, {best[0].partition(' (')[0]}. Best of the smallest sizes: one, 50.0 %." in page.text
    assert "(30 test images)" in page.text and "two 2.5 at step 9" in page.text and "two 25.0 % at step 9" in page.text
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["index.html"]
    # a run that has its own report is a link to it
    (runs[1] / "report").mkdir()
    (runs[1] / "report" / "index.html").write_text("")
    write_comparison(runs)
    assert "../two/report/index.html" in Page(path).loads


def test_runs_that_were_not_measured_alike(runs, tmp_path):
    one, two = runs
    (two / "evaluations.json").unlink()
    size = str(tiny_config().backbone_config.space.full)
    save_evaluations(two, [evaluation(size, 0.9, test_images=7)])
    (three := tmp_path / "three").mkdir()
    shutil.copy(one / "metrics.jsonl", three)  # a run without a model
    text = Page(write_comparison([one, two, three], tmp_path / "out")).text
    assert "The runs were not measured alike (one: 30 test images; two: 7 test images). Not measured: three." in text
    (one / "evaluations.json").unlink(), (two / "evaluations.json").unlink()
    text = Page(write_comparison([one, two, three], tmp_path / "out")).text
    assert "No size of these runs has been measured yet" in text and "three" in text


def test_names():
    assert names_of(["runs/vit", "runs/swin"]) == ["vit", "swin"]
    assert names_of(["a/run", "b/run/", "c"]) == ["a/run", "b/run", "b/c"] or names_of(["a/run", "b/run"]) == [
        "a/run",
        "b/run",
    ]


def refusal(capsys, *argv):
    assert run(report, [*map(str, argv)]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


def test_bad_input(runs, tmp_path, capsys):
    one, two = runs
    assert "is given twice: give each run once." in refusal(capsys, one, f"{one}/")
    assert "does not exist" in refusal(capsys, one, tmp_path / "none")
    assert "--images has no effect of several runs" in refusal(capsys, one, two, "--images", 3)
    assert "--port has no effect without --watch" in refusal(capsys, one, "--port", 80)
    assert "--output has no effect with --watch" in refusal(capsys, one, "--watch", "--output", tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "report").symlink_to(tmp_path.parent)
    assert "leads to another folder" in refusal(capsys, one, two)
