import json
import time

import numpy as np
import pytest
import torch
from transformers import PreTrainedConfig

from poa_hf import ElasticSpace, PoaViTConfig, SubNetwork
from poa_hf.selection import latency
from poa_hf.selection.costs import costs
from poa_hf.selection.latency import Latency, estimate, grid, latency_table, measure_latency


class Sleeper(torch.nn.Module):
    """Takes so many milliseconds per pass, in turn; the last one for good."""

    def __init__(self, *milliseconds: float):
        super().__init__()
        self.config = PreTrainedConfig(image_size=8, num_channels=3)
        self.milliseconds, self.passes, self.shapes = list(milliseconds), 0, set()

    def forward(self, images):
        assert not self.training and not torch.is_grad_enabled()
        self.shapes.add(tuple(images.shape))
        time.sleep(self.milliseconds[min(self.passes, len(self.milliseconds) - 1)] / 1000)
        self.passes += 1


def test_warm_up_does_not_count_and_the_median_does():
    model = Sleeper(300, 20, 200, 20)
    measured = measure_latency(model, batch_size=4, repeats=6, warmup=1)
    assert model.passes == 7 and model.shapes == {(4, 3, 8, 8)}
    assert 20 <= measured.median_ms < 120  # one of six took 200 ms
    assert measured.images_per_second == pytest.approx(4000 / measured.median_ms)
    assert 0 <= measured.iqr_ms < 150


def test_a_slow_model_is_repeated_less():
    model = Sleeper(30)
    measure_latency(model, repeats=100, warmup=100, max_seconds=0.01)
    assert model.passes == 1 + 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 0}, r"repeats \(0\) must be at least 1"),
        ({"batch_size": 0}, "batch_size .*0"),
        ({"warmup": -1}, r"warmup \(-1\) not negative"),
        ({"device": "abacus"}, "Device 'abacus' is not available here: use cpu"),
        ({"device": "meta"}, "Device 'meta' is not available here"),
        ({"device": "cpu:1"}, "Device 'cpu:1' is not available here"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        measure_latency(Sleeper(0), **options)
    if "repeats" not in options and "warmup" not in options:
        with pytest.raises(ValueError, match=message):
            latency_table(tiny_vit(), **options)


def tiny_vit(**overrides) -> PoaViTConfig:
    fields = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, min_hidden_size=16, image_size=32)
    return PoaViTConfig(**{**fields, "min_num_hidden_layers": 1, "patch_size": 8, **overrides})


def test_the_grid_spans_the_space():
    config = PoaViTConfig()
    assert [str(size) for size in grid(config.space)] == [
        f"{width}x{depth}" for width in (384, 704, 1024) for depth in (12, 18, 24)
    ]
    assert len(grid(tiny_vit().space)) == len(tiny_vit().space) == 12  # hardly more than 9: all of them
    two_stages = ElasticSpace((8, 16), tuple((2, a, b) for a in range(1, 8) for b in range(1, 20)))
    assert {size.depths for size in grid(two_stages)} == {(2, 1, 1), (2, 7, 1), (2, 1, 19), (2, 4, 10), (2, 7, 19)}


def test_latencies_that_add_up_are_estimated_exactly_and_others_with_their_error():
    sizes = [SubNetwork(width, depth) for width in range(1, 6) for depth in range(1, 6)]
    features = {s: np.array([1, s.depths[0], s.width**2 * s.depths[0], s.width * s.depths[0]], float) for s in sizes}
    truth = {size: float(values @ [0.5, 0.2, 0.03, 0]) for size, values in features.items()}
    measured = {size: Latency(truth[size], 0, 0) for size in sizes[::3]}
    found = estimate(features, measured)
    assert found["milliseconds"] == pytest.approx(truth)
    assert found["worst_error"] < 1e-6
    disturbed = measured | {sizes[12]: Latency(2 * truth[sizes[12]], 0, 0)}
    found = estimate(features, disturbed)
    assert found["milliseconds"][sizes[12]] == 2 * truth[sizes[12]]  # what was measured stands
    assert 0.4 < found["worst_error"] < 0.6 and found["mean_error"] < 0.3
    everything = estimate(features, {size: Latency(truth[size], 0, 0) for size in sizes})
    assert everything == {"milliseconds": truth, "mean_error": None, "worst_error": None}


def test_no_estimate_is_negative():
    features = {SubNetwork(1, depth): np.array([1, depth, depth**2, depth**3], float) for depth in range(1, 9)}
    measured = {SubNetwork(1, depth): Latency(time, 0, 0) for depth, time in ((4, 9.0), (5, 3.0), (6, 8.0), (8, 1.0))}
    assert min(estimate(features, measured)["milliseconds"].values()) > 0


def fake_measure(monkeypatch, milliseconds=lambda size: 1.0 + size.width * size.depths[0] / 64):
    """Instead of running models; gives the list of sizes that were measured."""
    asked = []

    def measure(config, sizes, device, batch_size, compile):
        asked.extend(sizes)
        return {size: Latency(milliseconds(size), 0.1, 10.0) for size in sizes}

    monkeypatch.setattr(latency, "_measure", measure)
    return asked


def test_measurements_are_kept_where_they_hold(tmp_path, monkeypatch):
    asked = fake_measure(monkeypatch)
    config = tiny_vit(num_hidden_layers=12)
    counted = {"costs_of_sizes": costs(config), "folder": tmp_path}
    first = latency_table(config, **counted)
    assert asked == grid(config.space) and set(first.milliseconds) == set(config.space)
    saved = json.loads((tmp_path / "latency-cpu-b1.json").read_text())
    assert saved["device"] == "cpu" and saved["threads"] == 1 and saved["torch"] == torch.__version__
    assert saved["date"] and saved["worst_error"] == first.worst_error
    asked.clear()
    assert latency_table(config, **counted) == first and not asked
    more = latency_table(config, also=[SubNetwork(24, 8)], **counted)
    assert asked == [SubNetwork(24, 8)] and len(more.measured) == len(first.measured) + 1
    asked.clear()
    assert len(latency_table(config, full=True, **counted).measured) == len(config.space)
    assert len(asked) == len(config.space) - len(first.measured) - 1
    asked.clear()
    torch.set_num_threads(2)  # other conditions
    assert latency_table(config, **counted).conditions["threads"] == 2 and asked == grid(config.space)
    asked.clear()
    latency_table(tiny_vit(num_hidden_layers=12, patch_size=16), **counted)
    assert len(asked) == len(grid(config.space))
    latency_table(config, batch_size=32, **counted)
    assert (tmp_path / "latency-cpu-b32.json").exists()
    for broken in ("", "[]", "{}", '{"measured": 3}'):
        (tmp_path / "latency-cpu-b1.json").write_text(broken)
        asked.clear()
        latency_table(config, **counted)
        assert len(asked) == len(grid(config.space))


def test_a_folder_that_cannot_be_written_to_is_only_a_warning(tmp_path, monkeypatch, caplog):
    fake_measure(monkeypatch)
    latency_table(tiny_vit(), folder=tmp_path / "missing")
    assert "could not be kept" in caplog.text


def test_real_models_are_measured(tmp_path):
    config = tiny_vit(min_num_hidden_layers=4, min_hidden_size=24)
    table = latency_table(config, folder=tmp_path)
    assert set(table.measured) == set(config.space) and table.worst_error is None
    assert all(0 < table[size] < 1000 for size in config.space)


def test_rounds_go_on_until_none_is_much_faster(monkeypatch):
    times = iter([90.0, 50.0, 40.0, 49.0, 41.0, 49.0, 1.0, 1.0])  # of two sizes, by turns
    monkeypatch.setattr(latency, "measure_latency", lambda *args, **kwargs: Latency(next(times), 0, 0))
    config = tiny_vit(min_num_hidden_layers=4, min_hidden_size=24)
    assert [table.median_ms for table in latency_table(config).measured.values()] == [40, 49]
