import warnings

import matplotlib.figure
import numpy as np
import pytest

from poa_hf import PoaSwinConfig, PoaViTConfig
from poa_hf.figures import charts
from poa_hf.figures.grids import grids

SPACE = PoaViTConfig().space
COST = {size: float(size.width**2 * size.depths[0]) for size in SPACE}
QUALITY = {size: 0.3 + 0.001 * index for index, size in enumerate(list(SPACE)[::10])}


def drawn(figure: matplotlib.figure.Figure) -> matplotlib.figure.Figure:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that does not fit warns
        figure.canvas.draw()
    assert figure.get_figwidth() == charts.WIDTH and figure.get_facecolor()[3] == 0
    return figure


@pytest.mark.parametrize("theme", charts.THEMES, ids=lambda theme: theme.name)
def test_lines_have_their_points_a_limit_and_a_legend(theme):
    lines = {"first": ([10, 20], [0.1, 0.2]), "second": ([10, 20, 30], [0.3, 0.2, 0.1])}
    axes = drawn(charts.line_chart(theme, lines, limit=(0.15, "too low"), bottom=0, top=1, percent=True)).axes[0]
    for line, (steps, values) in zip(axes.lines, lines.values(), strict=False):
        assert line.get_xdata().tolist() == steps and line.get_ydata().tolist() == values
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["first", "second"]
    assert [text.get_text() for text in axes.texts] == ["too low"] and axes.get_ylim() == (0, 1)
    pair = drawn(charts.line_chart(theme, {"a": ([1], [2]), "b": ([1], [3]), "c": ([1], [4])}, dashed=["b"])).axes[0]
    colors, styles = [line.get_color() for line in pair.lines], [line.get_linestyle() for line in pair.lines]
    assert colors[0] == colors[1] != colors[2] and styles == ["-", "--", "-"]
    assert drawn(charts.line_chart(theme, {"one": ([1], [2])})).axes[0].get_legend() is None


def test_a_heat_map_has_numbers_where_they_fit_and_dots_where_nothing_was_measured():
    space = PoaSwinConfig().space
    (grid,) = grids(space, {space.smallest: 0.25, space.full: 0.5})
    axes = drawn(charts.heat_map(charts.LIGHT, grid, 0.25, 0.5, "20-NN")).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("·") == len(space) - 2 and {"25.0", "50.0"} <= set(texts)
    assert axes.get_title(loc="left") == "20-NN"
    (large,) = grids(SPACE, {size: 0.5 for size in SPACE})
    assert np.isnan(large.values).sum() == 0
    drawn(charts.heat_map(charts.DARK, large, 0.5, 0.5, "20-NN"))


def test_sizes_are_points_and_the_best_of_them_a_line():
    front = list(QUALITY)[-3:]
    figure = charts.pareto_chart(charts.LIGHT, COST, QUALITY, front, "cost", "quality", {front[-1]: "large"})
    axes = drawn(figure).axes[0]
    assert len(axes.collections[0].get_offsets()) == len(QUALITY) - 3
    assert sorted(axes.lines[0].get_xdata()) == sorted(COST[size] for size in front)
    assert "large" in {text.get_text() for text in axes.texts}
    marked = drawn(charts.pareto_chart(charts.LIGHT, COST, QUALITY, front, "cost", "quality", {}, front[0])).axes[0]
    assert marked.get_title(loc="left") == str(front[0]) and not marked.texts


def test_two_costs_of_every_size():
    costs = {size: (cost, 2 * cost) for size, cost in COST.items()}
    names = {SPACE.full: "large"}
    axes = drawn(charts.cost_chart(charts.DARK, costs, ("parameters", "FLOPs"), names, SPACE.full)).axes[0]
    assert len(axes.collections[0].get_offsets()) == len(SPACE) and axes.get_title(loc="left") == "large"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("parameters", "FLOPs")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
