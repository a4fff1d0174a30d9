import pytest

from poa_hf.report.cost_plots import CostPoint, Group, cost_plot


def test_places_of_points_intervals_and_references():
    run = [CostPoint(10, 0.5, "a", (0.4, 0.55)), CostPoint(20, 0.6, "b"), CostPoint(15, 0.45, "c")]
    paper = [CostPoint(30, 0.7, "ViT"), CostPoint(40, 0.8, "ViT-L")]
    groups = {"this run": Group(run, run[:2]), "paper": Group(paper, paper, is_reference=True)}
    plot = cost_plot(groups, "parameters", "accuracy")
    dots = dict(zip("abcde", plot.dots, strict=True))
    # vertically, values from 40 % (the lowest end of an interval) to 80 % with 4 % of that as a margin
    for name, value in dict(a=0.5, b=0.6, c=0.45, d=0.7, e=0.8).items():
        assert dots[name].bottom == pytest.approx(100 * (value - 0.384) / 0.432, abs=0.01)
    assert dots["a"].bar == pytest.approx([100 * (end - 0.384) / 0.432 for end in (0.4, 0.55)], abs=0.01)
    assert dots["b"].bar is None and "40 % to 55 %" in dots["a"].text
    distances = [dots[name].left - dots["a"].left for name in "cbde"]
    assert [each / distances[0] for each in distances] == pytest.approx([1, 2, 4, 6], abs=0.02)
    assert [dot.strong for dot in plot.dots] == [True, True, False, True, True]
    assert [dot.label for dot in plot.dots] == ["a", "b", "", "", ""]
    assert [line.dashed for line in plot.lines] == [False, True] and not plot.falls
    assert dots["d"].text == "paper, ViT: 70 %, 30" and dots["d"].color != dots["a"].color


def test_the_line_of_an_error_falls():
    points = [CostPoint(1e6, 3.0, "a"), CostPoint(2e7, 1.5, "b")]
    plot = cost_plot({"": Group(points, points)}, "parameters", "RMSE", shown="{:g} m".format)
    assert plot.falls and plot.dots[0].text == "a: 3 m, 1M" and plot.dots[0].bottom > plot.dots[1].bottom
    assert all(tick.label.endswith(" m") for tick in plot.y_ticks)
