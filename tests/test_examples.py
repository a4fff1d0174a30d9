import json
from pathlib import Path

import datasets

from poa_hf.cli.main import main
from poa_hf.data.textures import TextureDataset
from poa_hf.runs.facts import RunFacts

from .conftest import ROOT, TINY, run_python


def check(folder: Path) -> None:
    table = json.loads((folder / "quickstart.json").read_text())
    assert len(table) == 3 and all(0 <= row["knn"] <= 100 for row in table)
    assert (folder / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((folder / "extracted").iterdir())) == 3


def test_quickstart_on_a_dataset_of_ones_own(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    for split, seed in (("train", 0), ("test", 1)):
        rows = [TextureDataset(seed=seed)[i] for i in range(40)]
        columns = {"picture": [row["image"] for row in rows], "label": [row["label"] for row in rows]}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(f"{images}/{split}-00000-of-00001.parquet")
    options = ["--dataset_name", str(images), "--output_dir", str(tmp_path / "run"), *TINY.split()]
    result = run_python(str(ROOT / "examples" / "quickstart.py"), *options)
    assert "raw pixels" in result.stdout
    check(tmp_path / "run")
    table = json.loads((tmp_path / "run" / "quickstart.json").read_text())
    [measured] = RunFacts.read(tmp_path / "run").comparisons  # what the report shows
    assert {str(size): 100 * value for size, value in measured.values.items()} == {
        row["size"]: row["knn"] for row in table
    }
    for row in table:
        card = (tmp_path / "run" / "extracted" / row["size"] / "README.md").read_text()
        assert "20-NN accuracy" in card and f"{row['knn']:.1f}" in card


def test_pretraining_with_the_trainer_of_transformers(tmp_path):
    program = str(ROOT / "examples" / "pretrain_with_trainer.py")
    options = "--max_steps 2 --per_device_train_batch_size 4 --report_to none --save_strategy no --logging_steps 1"
    run_python(program, "--output_dir", str(tmp_path / "run"), *options.split())
    assert main(["extract", str(tmp_path / "run"), "--size", "32x2", "--output", str(tmp_path / "small")]) == 0
    assert json.loads((tmp_path / "small" / "config.json").read_text())["hidden_size"] == 32
