"""Each benchmark program runs at its smallest scale, and its last line is one JSON object with the headline."""

import argparse
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from poa_hf import PoaForPreTraining
from poa_hf.data.processor import evaluation_processor
from poa_hf.runs.evaluations import save_evaluations
from poa_hf.training.step import OptimizerStep

from .conftest import ROOT, TINY, run_python, tiny_config
from .report.pages import evaluation


def figures(program: str, *options: str, timeout: int = 220) -> dict:
    output = run_python(str(ROOT / "benchmarks" / program), *options, timeout=timeout).stdout.splitlines()
    found = json.loads(output[-1])
    assert found["ratio"] > 0 and math.isfinite(found["ratio"])
    assert {"device", "torch", "python"} <= found.keys()
    assert found["torch"] in output[0] and found["device"] in output[0], "the table's head says what was measured where"
    table = "\n".join(output[:-1])
    assert f"{found['ratio']:.2f}" in table or f"{found['ratio']:.3f}" in table, "the table lacks the headline"
    return found


@pytest.mark.slow
def test_data_rate():
    found = figures("data_rate.py", "--images", "4", "--repeats", "1")["datasets"]["textures"]
    assert found["images_per_cpu_second"] == pytest.approx(1000 / found["milliseconds"])
    assert found["device_colour_milliseconds"] > 0 and found["draft_gain"] > 0


@pytest.mark.slow
def test_step_time():
    found = figures("step_time.py", "--preset", "tiny", "--repeats", "1")
    assert found["ratio"] == found["step_ratio"] and 0 < found["utilisation"] < 1
    assert {"teacher", "elastic", "heads and losses", "step"} <= found["parts"].keys()


@pytest.mark.slow
def test_memory():
    found = figures("memory.py", "--preset", "tiny", "--prototypes", "64", "128", "--repeats", "1")
    assert 0 < found["held_bytes"] < found["total_bytes"] and found["time_ratio"] > 0


@pytest.mark.slow
def test_scaling():
    found = figures("scaling.py", "--scale", "tiny", "--repeats", "1", "--steps", "40")
    assert set(found["families"]) == {"vit", "swin", "resnet"}
    assert found["ratio"] == found["families"]["vit"]["processes"]["64"]["ratio"]
    for family in found["families"].values():
        efficiency = [family["processes"][count]["efficiency"] for count in ("8", "64", "512")]
        assert 1 >= efficiency[0] >= efficiency[1] >= efficiency[2] > 0, "more processes wait longer"


@pytest.mark.slow
def test_overlap():
    found = figures("overlap.py", "--steps", "1", "--block_ms", "40", "--send_ms", "400")
    assert found["ratio"] < 0.8, "gradients are not sent during the backward pass"
    assert found["measured"]["all at the end"]["waited"] > 0.35
    for row in found["computed"]:
        assert all(0 <= waited <= row["at_the_end"] for waited in row["meanwhile"].values())


@pytest.mark.slow
def test_extraction(tmp_path):
    found = figures("extraction.py", "--scale", "tiny", "--folder", str(tmp_path))
    assert found["sizes"] == 9 and found["ratio"] == found["extraction_seconds"] / found["copy_seconds"]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_step_parts():
    """The program itself checks that both ways of each part compute the same."""
    found = figures("step_parts.py", "--preset", "tiny", "--repeats", "1", "--threads", "1")
    assert found["waits"] == {}
    pairs = found["pairs"]
    assert found["ratio"] == pairs["the whole step, not none of these"]["ratio"] < 1
    assert all(pair["ratio"] > 0 for pair in pairs.values())
    less_memory = {name for name, pair in pairs.items() if (pair["memory_ratio"] or 1) < 0.95}
    assert {
        "images dropped (0.2) left out, not computed, then zeroed",
        "teacher: global crops, not all crops",
        "heads: masked patches alone, not all patches",
        "slices once per step, not once per call",
        "activations computed again, not kept",
        "the whole step, not none of these",
    } <= less_memory


def test_what_makes_the_host_wait_is_counted(monkeypatch):
    """A step that reads its loss, and one that asks the device which patches are hidden, are noticed."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from parts.step_waits import step_waits

    forward, step = PoaForPreTraining.forward, OptimizerStep.__call__

    def asking(self, *args, masked_patches=None, **kwargs):
        return forward(self, *args, **kwargs)

    def reading(self, batches, number, window):
        step(self, batches, number, window)
        assert window.sums["loss"] > 0

    monkeypatch.setattr(PoaForPreTraining, "forward", asking)
    monkeypatch.setattr(OptimizerStep, "__call__", reading)
    found = step_waits(torch.device("cpu"))
    assert {what.partition(" (")[0]: count for what, count in found.items()} == {"a value is read": 1, "nonzero": 1}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_evaluation_cost():
    options = ("--scale", "tiny", "--repeats", "1", "--train_images", "200", "--against", str(ROOT / "src"))
    found = figures("evaluation_cost.py", *options, timeout=800)
    assert found["sizes"] == 9 and found["shared_flops"] < found["feature_flops"]
    assert found["pairs"] == [found["ratio"]] and found["time_together"] > 0


@pytest.mark.slow
def test_onnx_export():
    pytest.importorskip("onnxruntime")
    found = figures("onnx_export.py", "vit", "small", "resnet", "50")
    assert found["ratio"] == max(size["time_ratio"] for size in found["sizes"]) and found["difference"] < 1e-4


def test_launches():
    """Counts of a tiny step, whose parts add up, on tensors without memory."""
    output = run_python(str(ROOT / "benchmarks" / "launches.py"), "--preset", "tiny").stdout.splitlines()
    found = json.loads(output[-1])
    assert found["launches"] == sum(found["parts"].values()) == sum(found["operations"].values())
    assert found["gigabytes"] == pytest.approx(sum(found["gigabytes_by_part"].values())) and found["gigabytes"] > 0
    assert {"teacher", "intact", "elastic", "heads and losses", "optimiser", "augmentation"} <= found["parts"].keys()
    assert found["operations"]["aten.mm.default"] > 20 and f"{found['launches']:,}" in "\n".join(output)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_launches_compiled():
    """Compiled blocks and losses launch and move less; kinds of blocks are those that a run compiles."""
    program = str(ROOT / "benchmarks" / "launches.py")
    found = json.loads(run_python(program, "--preset", "tiny", "--compile", timeout=800).stdout.splitlines()[-1])
    assert found["compiled_launches_by_functions"] < found["compiled_launches_by_loops"] < found["launches"]
    assert 0 < found["compiled_gigabytes"] < found["gigabytes"]
    assert [kind.partition(" ")[2] for kind in found["kinds"] if kind.startswith("PoaViTLayer")] == [
        "8x5x64, forward only",
        "8x5x64",
        "32x2x64",
        "8x5x32",
        "32x2x32",
    ]


def test_bytes_that_operations_move(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from parts.launches import Launches

    values, others = torch.ones(100), torch.ones(100, dtype=torch.bfloat16)
    for operation, expected in (
        (lambda: values * 2, 800),
        (lambda: values.add_(others), 1000),  # reads both, writes one
        (lambda: values.copy_(others), 600),
        (lambda: values.zero_(), 400),
        (lambda: torch.mul(values, 2, out=values), 800),
        (lambda: torch._foreach_copy_([others, others], [values, values]), 1200),
        (lambda: values.view(10, 10).t(), 0),
        (lambda: values[:1].expand(1000) + values[:1], 4 * 1002),  # expanded entries are one in memory
    ):
        with Launches() as launches:
            operation()
        assert launches.work.bytes == expected and launches.work.launches == (expected > 0)


@pytest.mark.slow
def test_gpu_step():
    program = str(ROOT / "benchmarks" / "gpu_step.py")
    options = ("--preset", "tiny", "--float32", "--compile", "off", "--repeats", "1")
    found = json.loads(run_python(program, *options).stdout.splitlines()[-1])
    assert found["seconds"] > 0 and 0 < found["mfu"] < 1 and found["compilations"] == 0


@pytest.mark.slow
def test_real_data():
    """Both phases of a tiny run from JPEG shards are timed."""
    program = str(ROOT / "benchmarks" / "real_data.py")
    options = ("--preset", "tiny", "--steps", "10", "--images", "64", "--workers", "1")
    found = json.loads(run_python(program, *options).stdout.splitlines()[-1])
    assert 0 < found["images_per_second"] and 0 < found["resident_images_per_second"] and 0 <= found["data_wait"] < 1
    assert found["ratio"] == pytest.approx(found["images_per_second"] / found["resident_images_per_second"])


@pytest.mark.slow
def test_order_units(tmp_path):
    """Every criterion is measured for a stock model, and nothing is measured twice."""
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
    Dinov2Model(config).save_pretrained(tmp_path / "stock")
    evaluation_processor(32).save_pretrained(tmp_path / "stock")
    options = ["--folder", str(tmp_path / "kept"), "--models", str(tmp_path / "stock"), "--images", "32", "64"]
    options += ["--memory_images", "60", "--test_images", "40"]
    first, again = (run_python(str(ROOT / "benchmarks" / "order_units.py"), *options).stdout for _ in range(2))
    assert "stock-textures loss-signed,64,0:" in first and "stock-textures " not in again.split("|")[0]
    gains = json.loads(again.splitlines()[-1])["gains"]
    assert gains == json.loads(first.splitlines()[-1])["gains"] and len(gains) == 3 + 2 * (7 * 2 + 5)
    assert gains["random"]["stock-textures"] == pytest.approx(0, abs=1e-9)


GPU_SCRIPT = ROOT / "benchmarks" / "gpu.sh"
has_timeout = pytest.mark.skipif(shutil.which("timeout") is None, reason="the script needs timeout, of GNU coreutils")


def gpu_figures(folder, python: str, **environment) -> list[dict]:
    """Run gpu.sh with a shell script in place of the interpreter, and return its lines so far."""
    interpreter = folder / "python"
    interpreter.write_text(python)
    interpreter.chmod(0o755)
    lines = folder / "figures" / "figures.jsonl"
    environment = os.environ | {"PYTHON": str(interpreter)} | environment
    subprocess.run(["sh", str(GPU_SCRIPT), str(lines.parent)], env=environment, check=True, capture_output=True)
    return [json.loads(line) for line in lines.read_text().splitlines()]


@has_timeout
def test_gpu_figures_come_in_calls_of_under_six_minutes(tmp_path):
    """Each part leaves one line, also one that fails; others come next, and then what has failed is tried again."""
    seconds = dict(re.findall(r"^ +part (\w+) (\d+) ", GPU_SCRIPT.read_text(), re.MULTILINE))
    works = "#!/bin/sh\necho '{\"seconds\": 1}'\n"
    fails = '#!/bin/sh\ncase "$*" in *real_data*) exit 3;; esac\necho \'{"seconds": 1}\'\n'
    first = gpu_figures(tmp_path, fails, BUDGET="39")
    assert {line["part"] for line in first} == {name for name, limit in seconds.items() if int(limit) < 36}
    found = gpu_figures(tmp_path, fails)
    assert len(found) == len(seconds) and {line["part"] for line in found} == set(seconds)
    assert max(map(int, seconds.values())) < 350
    for line in found:
        failed = line["part"].startswith("real_data")
        assert (line["status"], line["figures"]) == ((3, None) if failed else (0, {"seconds": 1}))
    for python, status, figures_of_part in ((fails, 3, None), (works, 0, {"seconds": 1})):
        again = gpu_figures(tmp_path, python)
        assert [line["part"] for line in again[len(found) :]] == ["real_data", "real_data_small"]
        assert {(line["status"], str(line["figures"])) for line in again[len(found) :]} == {
            (status, str(figures_of_part))
        }
        found = again
    assert gpu_figures(tmp_path, works) == found, "what has its figures was made again"


@has_timeout
@pytest.mark.parametrize("preset", ["vit_large", "tiny"])
def test_gpu_figures_are_made_with_options_that_programs_have(preset, tmp_path, monkeypatch):
    gpu_figures(tmp_path, f"#!/bin/sh\nprintf '%s\\n' \"$*\" >> {tmp_path}/commands\n", PRESET=preset)
    commands = (tmp_path / "commands").read_text().splitlines()
    assert len(commands) == len(re.findall(r"^ +part ", GPU_SCRIPT.read_text(), re.MULTILINE))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    parse = argparse.ArgumentParser.parse_args
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda *args: sys.exit(str(vars(parse(*args)))))
    for command in commands:
        program, *options = command.split()
        monkeypatch.setattr(sys, "argv", [program, *options])
        with pytest.raises(SystemExit, match="^{"):
            runpy.run_path(str(ROOT / program), run_name="__main__")


def tiny_cifar(folder):
    """A labelled dataset of two splits, of textures, as a folder of parquet files like CIFAR-10's train split."""
    import datasets

    from poa_hf import TextureDataset

    folder.mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)})
    for number, name in enumerate([*(f"train-{part:05d}-of-00008" for part in range(8)), "test-00000-of-00001"]):
        rows = [TextureDataset(seed=number)[index] for index in range(30)]
        table = {name: [row[name] for row in rows] for name in ("image", "label")}
        datasets.Dataset.from_dict(table, features=features).to_parquet(str(folder / f"{name}.parquet"))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_run_many_sizes(tmp_path):
    """A comparison that is cut off goes on, repeats nothing, and has all three readings and their intervals."""
    options = ["--dataset_name", str(tiny_cifar(tmp_path / "images")), "--scale", "cpu", "--sizes", "32x2", "64x4"]
    options += ["--steps", "8", "--seeds", "0", "1", "--output_dir", str(tmp_path / "runs"), "--plot", str(tmp_path)]
    options += ["--every_run", "per_device_train_batch_size=8", "dataloader_num_workers=0"]
    program = str(ROOT / "benchmarks" / "one_run_many_sizes.py")
    cut_off = run_python(program, *options, "--seconds", "0", timeout=600)
    assert json.loads(cut_off.stdout.splitlines()[-1])["compared"]["alone"] == {} and "was not begun" in cut_off.stderr
    found = figures("one_run_many_sizes.py", *options, timeout=1500)
    assert {kind: set(sizes) for kind, sizes in found["compared"].items()} == dict.fromkeys(
        ("alone", "short", "slices", "untrained"), {"32x2", "64x4"}
    )
    for sizes in found["compared"].values():
        for of_size in sizes.values():
            for task in ("knn", "linear"):
                low, high = of_size[task]["interval"]
                assert low <= of_size[task]["difference"] <= high and of_size["seeds"] == 2
                mean = sum(of_size[task]["first"]) / 2 - sum(of_size[task]["second"]) / 2
                assert of_size[task]["difference"] == pytest.approx(mean)
    # the full size cut from itself is the full size trained alone
    assert found["compared"]["slices"]["64x4"]["knn"]["second"] == found["compared"]["alone"]["64x4"]["knn"]["second"]
    assert all(len(found["curves"][way]) == 8 for way in ("one run", "alone"))
    assert found["curves"]["alone"]["8"].keys() == {"32x2", "64x4"} and (tmp_path / "one_run.svg").exists()
    runs = tmp_path / "runs"
    steps = json.loads((runs / "equal_compute.json").read_text())["steps"]
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("model.safetensors")}
    assert len(before) == 2 * (1 + 2) * (8 + 1) + 2 * 2 * (1 + 1) and 1 <= steps
    record = ["--record", str(tmp_path / "record.zip")]
    assert figures("one_run_many_sizes.py", *options, *record) == found
    assert before == {path: path.stat().st_mtime_ns for path in runs.rglob("model.safetensors")}
    elsewhere = ["--output_dir", str(tmp_path / "elsewhere")]
    assert figures("one_run_many_sizes.py", *options, *elsewhere, *record) == found
    assert not [*(tmp_path / "elsewhere").rglob("model.safetensors")], "a run of the record was made again"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_trained_start(tmp_path):
    """All ways start from one model, or learn from it, and cost as much; runs are not repeated."""
    torch.manual_seed(0)
    source = dict(hidden_size=64, num_hidden_layers=4, num_attention_heads=4, image_size=32, patch_size=8)
    model = Dinov2Model(Dinov2Config(**source, layerscale_value=1.0, initializer_range=0.05))
    model.save_pretrained(tmp_path / "source")
    evaluation_processor(32, [0.5] * 3, [0.25] * 3).save_pretrained(tmp_path / "source")
    options = ["--source", str(tmp_path / "source"), "--dataset_name", str(tiny_cifar(tmp_path / "images"))]
    options += ["--steps", "2", "--seeds", "0", "--output_dir", str(tmp_path / "runs")]
    options += ["--every_run", "per_device_train_batch_size=8", "dataloader_num_workers=0", "--rate", "sliced=0.5"]
    options += ["--pilot_steps", "2", "82"]
    found = figures("trained_start.py", *options, timeout=1700)
    assert set(found["compared"]) == {"slices", "unordered", "taught", "distilled", "sliced", "alone"}
    assert all(sizes.keys() == {"32x2", "48x3", "64x4"} for sizes in found["compared"].values())
    runs = tmp_path / "runs" / "seed-0"
    assert "foreign_teacher" in (runs / "sliced-48x3" / "config.yaml").read_text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model.safetensors")}
    assert figures("trained_start.py", *options) == found
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model.safetensors")}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_levers(tmp_path):
    """Levers are compared with the base of the same seed, on the last file of the train split."""
    images = tiny_cifar(tmp_path / "images")
    (images / "test-00000-of-00001.parquet").write_bytes(b"the test split is not read")
    options = ["--data", "cifar10", "--dataset_name", str(images), "--steps", "2", "--seeds", "0"]
    options += ["--output_dir", str(tmp_path / "runs"), "--levers", "base", "candidates-4+students-2"]
    found = figures("levers.py", *options, "shared-rate-0.5", "--alone", "32x2", timeout=1000)
    assert found["runs"].keys() == {"base", "candidates-4+students-2", "shared-rate-0.5", "alone-32x2"}
    weights = [
        (tmp_path / "runs" / "cifar10-2" / name / "seed-0" / "model.safetensors").read_bytes() for name in found["runs"]
    ]
    assert len(set(weights)) == len(weights)
    assert found["runs"]["alone-32x2"]["0"].keys() == {"32x2"} < found["runs"]["base"]["0"].keys()
    recipe = (tmp_path / "runs" / "cifar10-2" / "candidates-4+students-2" / "seed-0" / "config.yaml").read_text()
    assert "num_candidates: 4" in recipe and "num_elastic_students: 2" in recipe
    assert figures("levers.py", *options, "--report") == found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_gradient_conflict(tmp_path):
    """The full size as the elastic student pulls where the intact one does, but for the same-view terms."""
    run = tmp_path / "run"
    options = ["--output_dir", str(run), "--max_steps", "2", "--save_steps", "1", *TINY.split()[:-2]]
    run_python("-m", "poa_hf.cli", "pretrain", "--config", "quickstart", *options)
    program = str(ROOT / "benchmarks" / "gradient_conflict.py")
    options = [str(run / "checkpoint-1"), str(run / "checkpoint-2"), "--batches", "2", "--plot", str(tmp_path)]
    found = json.loads(run_python(program, *options).stdout.splitlines()[-1])
    assert found["steps"].keys() == {"1", "2"} and (tmp_path / "gradient_conflict.svg").exists()
    for sizes in found["steps"].values():
        assert sizes.keys() == {"intact", "32x1", "32x2", "48x1", "48x2", "64x1"}
        for name, size in sizes.items():
            if name == "intact":
                continue
            assert size["norm"] > 0 and all(-1 <= size[key] <= 1 for key in ("mean_cosine", "agreement", "ceiling"))
            blocks = {layer for layer, value in size["cosine"].items() if value is None}
            assert blocks == ({"block 2"} if name.endswith("x1") else set())


@pytest.mark.slow
def test_predicted_quality(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    values = {size: 0.1 * math.log(size.width * sum(size.depths)) for size in tiny_config().backbone_config.space}
    save_evaluations(tmp_path, [evaluation(str(size), value) for size, value in values.items()])
    options = ["--measured", "5", "9", "--draws", "3"]
    output = run_python(str(ROOT / "benchmarks" / "predicted_quality.py"), str(tmp_path), *options).stdout.splitlines()
    found = json.loads(output[-1])
    assert {"torch", "python"} <= found.keys() and [row["kept"] for row in found["rows"]] == ["5 at random"]
    if found["ratio"] is not None:
        assert found["ratio"] < 0.5 and f"{found['ratio']:.2f}" in output[-2]
