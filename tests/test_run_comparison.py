"""What comparisons of pre-training runs keep of a run, and how they join seeds."""

import json
import zipfile

import numpy as np
import pytest
import yaml

from .conftest import ROOT


@pytest.fixture(autouse=True)
def programs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def a_run(folder, recipe, finished=True):
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "output_dir": str(folder)}))
    cost = {"cpu_seconds": 5.0, "wall_seconds": 4.0, "finished": finished}
    (folder / "cost.json").write_text(json.dumps(cost))
    (folder / "model.safetensors").write_bytes(bytes(1000))
    np.savez_compressed(folder / "outcomes-poa-32x2.npz", **{"knn 32x2": np.arange(10) % 2 == 0})


def test_a_finished_run_counts_on_another_machine(tmp_path):
    from parts.cached_runs import finished_cost, pretrain
    from parts.run_record import pack, unpack

    recipe = {"max_steps": 3, "dataset_name": str(tmp_path / "here" / "cifar10")}
    here, there, record = tmp_path / "runs", tmp_path / "there", tmp_path / "records" / "record.zip"
    unpack(record, here)  # there is none yet
    a_run(here / "seed-0" / "poa", recipe)
    a_run(here / "seed-1" / "poa", recipe, finished=False)
    pack(record, here)
    with zipfile.ZipFile(record) as kept:
        assert kept.namelist() == [
            f"seed-0/poa/{name}" for name in ("cost.json", "outcomes-poa-32x2.npz", "recipe.yaml")
        ]
        assert str(tmp_path) not in kept.read("seed-0/poa/recipe.yaml").decode()
    unpack(record, there)
    assert finished_cost(there / "seed-0" / "poa") == {"cpu_seconds": 5.0, "wall_seconds": 4.0}
    elsewhere = recipe | {"dataset_name": "/data/cifar10"}
    assert pretrain(there / "seed-0" / "poa", elsewhere)["cpu_seconds"] == 5.0, "it was trained again"
    for other in ({"max_steps": 4}, {"dataset_name": "/data/cifar100"}):
        with pytest.raises(ValueError, match="another recipe"):
            pretrain(there / "seed-0" / "poa", elsewhere | other)


def test_a_record_grows_and_does_not_replace_runs(tmp_path):
    from parts.run_record import pack, unpack

    first, second, record = tmp_path / "first", tmp_path / "second", tmp_path / "record.zip"
    a_run(first / "seed-0" / "poa", {"max_steps": 3})
    pack(record, first)
    a_run(second / "seed-0" / "poa", {"max_steps": 3}, finished=False)  # begun here too
    a_run(second / "seed-1" / "poa", {"max_steps": 3})
    unpack(record, second)
    assert not json.loads((second / "seed-0" / "poa" / "cost.json").read_text())["finished"]
    pack(record, second)
    third = tmp_path / "third"
    unpack(record, third)
    assert sorted(path.name for path in third.glob("*")) == ["seed-0", "seed-1"], "the record lost a finished run"
    assert json.loads((third / "seed-0" / "poa" / "cost.json").read_text())["finished"]
    before = record.read_bytes()
    pack(record, second)
    assert record.read_bytes() == before


def outcomes(values):
    return {"knn 32x2": values, "linear 32x2": values}


def test_seeds_of_which_only_accuracies_are_kept_count():
    """Against SciPy's t interval where no seed has outcomes, and the plain mean always."""
    from parts.size_comparison import differences
    from scipy import stats

    first, second = [np.array(value) for value in (0.5, 0.52, 0.55)], [np.array(value) for value in (0.49, 0.5, 0.5)]
    found = differences(*([outcomes(value) for value in side] for side in (first, second)), "32x2")["knn"]
    assert found["first"] == pytest.approx([50, 52, 55]) and found["difference"] == pytest.approx(8 / 3)
    expected = stats.ttest_1samp([1.0, 2.0, 5.0], 0).confidence_interval(0.95)
    assert found["interval"] == pytest.approx(expected)
    alone = differences([outcomes(first[0])], [outcomes(second[0])], "32x2")["knn"]
    assert alone["interval"] is None and alone["difference"] == pytest.approx(1)


def test_intervals_of_mixed_seeds_hold_the_truth():
    """In simulations, at least 95 % of the intervals for other images and other seeds hold the true difference."""
    from parts.size_comparison import differences

    generator, images, seeds, held = np.random.default_rng(0), 400, 3, []
    for _ in range(300):
        of_image, of_seed = generator.normal(0, 0.3, (images, 1)), generator.normal(0, 0.02, seeds)
        difference = 0.1 + of_image + of_seed + generator.normal(0, 0.3, (images, seeds))
        second = generator.normal(0.5, 0.2, (images, seeds))
        sides = [list((second + difference).T), list(second.T)]
        kept = [
            [outcomes(one if seed == 2 else np.array(one.mean())) for seed, one in enumerate(side)] for side in sides
        ]
        low, high = differences(*kept, "32x2")["knn"]["interval"]
        held.append(low <= 10 <= high)
    assert 0.94 <= np.mean(held) <= 0.995
