import matplotlib
import pytest

from poa_hf import ElasticSpace, SubNetwork
from poa_hf.figures.charts import COLORS
from poa_hf.figures.grids import grids
from poa_hf.report.heat_maps import heat_map
from poa_hf.runs.metrics import Metric

SPACE = ElasticSpace((32, 48, 64), ((2,), (4,)))
ACCURACY = Metric("knn", "k-NN", "accuracy", "accuracy")
ERROR = Metric("depth", "RMSE", "RMSE", "rmse", higher_is_better=False, is_share=False)


def color(share: float) -> str:
    return matplotlib.colors.to_hex(matplotlib.colormaps[COLORS](float(share)))


@pytest.mark.parametrize(("kind", "low", "high"), [(ACCURACY, 0.25, 0.75), (ERROR, 4.0, 2.0)])
def test_cells_have_the_colours_of_the_scale_and_predicted_ones_are_striped(kind, low, high):
    middle, guess = (low + high) / 2, low + 0.25 * (high - low)
    measured = {SPACE.smallest: low, SubNetwork(48, 4): middle, SPACE.full: high}
    (grid,) = grids(SPACE, measured, kind.higher_is_better)
    (predicted,) = grids(SPACE, {SubNetwork(48, 2): guess, SPACE.full: low}, kind.higher_is_better)
    drawn = heat_map(grid, low, high, kind.shown, predicted)
    assert drawn.columns == (32, 48, 64) and [depth for depth, _ in drawn.rows] == [4, 2]
    (empty, half, best), (worst, striped, other) = (cells for _, cells in drawn.rows)
    assert (worst.background, half.background, best.background) == (color(0), color(0.5), color(1))
    assert [cell.best for cell in (worst, half, best, striped)] == [False, False, True, False]
    assert best.text == kind.shown(high, unit=False)  # measured: not predicted
    assert striped.text == f"~{kind.shown(guess, unit=False)}"
    assert "repeating-linear-gradient" in striped.background and color(0.25) in striped.background
    assert striped.ink == "inherit" and empty.text == other.text == "·"
    assert drawn.scale.startswith(color(0)) and (drawn.low, drawn.high) == (kind.shown(low), kind.shown(high))
