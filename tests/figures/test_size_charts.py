import numpy as np

from poa_hf import ElasticSpace
from poa_hf.figures import charts

SIZES = list(ElasticSpace((32, 48, 64), ((2,), (4,))))
COST = {size: float(size.width * size.depths[0]) for size in SIZES}


def test_intervals_are_bars_and_others_models_dashed_lines():
    quality = {size: 0.3 + 0.05 * index for index, size in enumerate(SIZES)}
    intervals = {SIZES[0]: (0.25, 0.4), SIZES[3]: (0.1, 0.9)}
    others = {"paper: ViT": [(500.0, 0.7), (2000.0, 0.8)]}
    front = SIZES[-2:]
    figure = charts.pareto_chart(
        charts.DARK, COST, quality, front, "cost", "accuracy", {}, intervals=intervals, references=others
    )
    axes = figure.axes[0]
    bars = [np.asarray(each.get_segments()[0]) for each in axes.collections if hasattr(each, "get_segments")]
    for bar, (size, ends) in zip(bars, intervals.items(), strict=True):
        np.testing.assert_allclose(bar, [[COST[size], 100 * end] for end in ends])
    run, paper = axes.lines
    assert list(paper.get_xdata()) == [500, 2000] and np.allclose(paper.get_ydata(), [70, 80])
    assert paper.get_linestyle() != "-" and run.get_linestyle() == "-" and paper.get_color() != run.get_color()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["this run", "paper: ViT"]


def test_an_error_is_shown_as_it_is_and_its_labels_stand_above_the_line():
    errors = {size: 3.0 - 0.5 * index for index, size in enumerate(SIZES)}
    axes = charts.pareto_chart(charts.LIGHT, COST, errors, SIZES, "cost", "RMSE", {}, percent=False).axes[0]
    assert sorted(axes.lines[0].get_ydata()) == sorted(errors.values()) and axes.get_ylabel() == "RMSE"
    first, *_, last = axes.texts
    assert first.get_position()[1] > 0 > last.get_position()[1]
    assert axes.get_legend() is None
