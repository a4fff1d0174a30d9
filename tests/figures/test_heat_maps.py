import matplotlib.colors
import numpy as np
import pytest

from poa_hf import ElasticSpace, SubNetwork
from poa_hf.figures import charts
from poa_hf.figures.grids import grids

SPACE = ElasticSpace((32, 48, 64), ((2,), (4,)))


@pytest.mark.parametrize("theme", charts.THEMES, ids=lambda theme: theme.name)
def test_predicted_cells_are_hatched_and_marked(theme):
    measured, guessed = {SPACE.smallest: 0.25, SPACE.full: 0.5}, {SubNetwork(48, 2): 0.375, SPACE.full: 0.1}
    (grid,), (guess,) = grids(SPACE, measured), grids(SPACE, guessed)
    axes = charts.heat_map(theme, grid, 0.25, 0.5, "20-NN", predicted=guess).axes[0]
    texts = {tuple(text.get_position()): text for text in axes.texts}
    # the place of a cell is its column (width) and row (depth); what was measured is not predicted
    shown = {place: text.get_text() for place, text in texts.items()}
    assert shown == {(0, 0): "25.0", (1, 0): "~37.5", (2, 1): "50.0", (2, 0): "·", (0, 1): "·", (1, 1): "·"}
    (cell,) = axes.patches
    assert cell.get_hatch() and cell.get_xy() == (0.5, -0.5) and cell.get_facecolor()[3] < 0.5
    assert np.allclose(cell.get_facecolor()[:3], matplotlib.colormaps[charts.COLORS](0.5)[:3], atol=0.01)
    assert texts[1, 0].get_color() == theme.ink


def test_of_an_error_the_lowest_value_is_the_brightest():
    (grid,) = grids(SPACE, {SPACE.smallest: 3.0, SPACE.full: 1.0}, higher_is_better=False)
    figure = charts.heat_map(charts.LIGHT, grid, 3.0, 1.0, "RMSE", shown=lambda value, unit=True: f"{value:g} m")
    image = figure.axes[0].images[0]
    for value, share in ((3.0, 0.0), (1.0, 1.0)):
        assert np.allclose(image.cmap(image.norm(value)), matplotlib.colormaps[charts.COLORS](share))
    assert {"3 m", "1 m"} <= {text.get_text() for text in figure.axes[0].texts}
