"""Results as a table: sizes as rows, metrics as columns, each in its unit."""

from poa_hf.evaluation.table import results_table
from poa_hf.runs.evaluations import Evaluation


def record(metric: str, value: float, size: str = "small") -> Evaluation:
    return Evaluation(
        model="run",
        size=size,
        task=metric.split("_")[0],
        metric=metric,
        value=value,
        dataset="rooms",
        train_split="train",
        test_split="test",
        train_images=20,
        test_images=10,
        date="2026-11-27",
        interval=[value - 0.1, value + 0.3],
    )


def test_shares_are_in_per_cent_and_other_values_as_they_are():
    lines = results_table([record("depth_rmse", 0.625), record("depth_delta1", 0.5)]).splitlines()
    assert lines[0] == "run on rooms, in % except RMSE (10 test images classified by 20 train images)"
    assert [line.split() for line in lines[2:5]] == [
        ["size", "RMSE", "δ1"],
        ["small", "0.625", "50.0"],
        ["±", "0.2", "20.0"],
    ]
    assert results_table([record("depth_delta1", 0.5)]).startswith("run on rooms, in % (10 test images")
