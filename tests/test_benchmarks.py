"""Each benchmark program runs at its smallest scale, and its last line is one JSON object with the headline."""

import json
import math

import pytest

from .conftest import ROOT, run_python


def figures(program: str, *options: str) -> dict:
    output = run_python(str(ROOT / "benchmarks" / program), *options, timeout=220).stdout.splitlines()
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
def test_scaling():
    found = figures("scaling.py", "--scale", "tiny", "--repeats", "1", "--steps", "40")
    assert set(found["families"]) == {"vit", "swin", "resnet"}
    assert found["ratio"] == found["families"]["vit"]["processes"]["64"]["ratio"]
    for family in found["families"].values():
        efficiency = [family["processes"][count]["efficiency"] for count in ("8", "64", "512")]
        assert 1 >= efficiency[0] >= efficiency[1] >= efficiency[2] > 0, "more processes wait longer"


@pytest.mark.slow
def test_extraction(tmp_path):
    found = figures("extraction.py", "--scale", "tiny", "--folder", str(tmp_path))
    assert found["sizes"] == 9 and found["ratio"] == found["extraction_seconds"] / found["copy_seconds"]
    assert not list(tmp_path.iterdir())
