import json

import pytest
import torch

from poa_hf import ElasticSpace, PoaViTConfig, SubNetwork
from poa_hf.selection import latency_table as module
from poa_hf.selection.costs import costs
from poa_hf.selection.latency import Latency
from poa_hf.selection.latency_table import grid, latency_table


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


def fake_measure(monkeypatch, milliseconds=lambda size: 1.0 + size.width * size.depths[0] / 64):
    """Replaces measuring; returns the list that the measured sizes are added to."""
    asked = []

    def measure(config, sizes, device, batch_size, compile):
        asked.extend(sizes)
        return {size: Latency(milliseconds(size), 0.1, 10.0) for size in sizes}

    monkeypatch.setattr(module, "_measure", measure)
    return asked


def test_measurements_are_kept_where_they_hold(tmp_path, monkeypatch):
    asked = fake_measure(monkeypatch)
    config = tiny_vit(num_hidden_layers=12)
    counted = {"size_costs": costs(config), "folder": tmp_path}
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
    times = iter([90.0, 50.0, 40.0, 49.0, 41.0, 49.0, 1.0, 1.0])  # two sizes in turn
    monkeypatch.setattr(module, "measure_latency", lambda *args, **kwargs: Latency(next(times), 0, 0))
    config = tiny_vit(min_num_hidden_layers=4, min_hidden_size=24)
    assert [table.median_ms for table in latency_table(config).measured.values()] == [40, 49]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size .*0"),
        ({"device": "abacus"}, "Device 'abacus' is not available here: use cpu"),
        ({"device": "meta"}, "Device 'meta' is not available here"),
        ({"device": "cpu:1"}, "Device 'cpu:1' is not available here"),
    ],
)
def test_devices_that_are_not_available_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        latency_table(tiny_vit(), **options)
