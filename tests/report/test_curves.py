import math

import pytest

from poa_hf import ElasticSpace
from poa_hf.report.curves import curves_section, read_curve
from poa_hf.runs.facts import RunFacts
from poa_hf.selection.costs import Costs

from ..conftest import tiny_config
from .pages import evaluation

CURVE = {"x_name": "strength", "x": [1, 2, 5], "series": {"noise": [0.5, 0.25, 0.125], "blur": [0.5, None, 0.4]}}


def recorded(size, curve, **fields):
    fields = dict(task="corruptions", metric="corruptions_accuracy", settings={}) | fields
    return evaluation(str(size), 0.3, details={"curve": curve}, **fields)


def section(*records):
    config = tiny_config()
    facts = RunFacts(config, "run", evaluations=records, steps=4)
    costs = {size: Costs(index, index, 1) for index, size in enumerate(config.backbone_config.space)}
    return curves_section(facts, costs)


def test_each_series_is_a_chart_with_sizes_as_lines():
    sizes = list(tiny_config().backbone_config.space)
    found = section(*(recorded(size, CURVE) for size in sizes))
    noise, blur = found.charts
    assert noise.title.endswith(": noise") and blur.title.endswith(": blur")
    names = [line.name for line in noise.plot.lines]
    assert len(names) == min(6, len(sizes)) and (names[0], names[-1]) == (str(sizes[0]), str(sizes[-1]))
    assert noise.plot.x_name == "strength" and [tick.label for tick in noise.plot.x_ticks][0] == "1"
    assert [reading[2:] for reading in noise.plot.lines[0].readings] == [("1", "50 %"), ("2", "25 %"), ("5", "12.5 %")]
    assert [reading[2] for reading in blur.plot.lines[0].readings] == ["1", "5"]  # without the value that is not known
    assert [reading[0] for reading in noise.plot.lines[0].readings] == [0, 25, 100]
    # one vertical axis: the same value is as high in both charts
    assert noise.plot.lines[0].readings[0][1] == blur.plot.lines[0].readings[0][1]
    assert "from 50.0 % at 1 to 12.5 % at 5" in noise.caption and len(noise.files()) == 2
    assert noise.name != blur.name


def test_tasks_and_datasets_have_charts_of_their_own_and_other_records_none():
    size = tiny_config().backbone_config.space.full
    records = [recorded(size, CURVE), recorded(size, CURVE, dataset="birds")]
    records += [recorded(size, CURVE, task="occlusion", metric="occlusion_accuracy"), evaluation(str(size), 0.5)]
    found = section(*records)
    assert len(found.charts) == 6 and len({chart.name for chart in found.charts}) == 6
    assert sum("birds" in chart.caption for chart in found.charts) == 2
    assert section(evaluation(str(size), 0.5)) is None and section() is None


@pytest.mark.parametrize(
    "curve",
    [
        None, [], "curve", {}, {"x": [1], "series": []}, {"x": [], "series": {"a": []}}, {"x": [1], "series": {"a": 1}},
        {"x": [1, 2], "series": {"a": [1]}}, {"x": ["1"], "series": {"a": [1]}}, {"x": [True], "series": {"a": [1]}},
        {"x": [math.nan], "series": {"a": [1]}}, {"x": [1], "series": {"a": [math.inf]}},
        {"x": [10**400], "series": {"a": [1]}}, {"x": [1], "series": {"a": [10**400]}}, {"x": 1, "series": {"a": 1}},
    ],
)  # fmt: skip
def test_what_is_no_curve_is_left_out(curve):
    assert read_curve(recorded("1x1", curve)) is None
    size = ElasticSpace((32,), ((3,),)).full
    assert section(recorded(size, curve)) is None


def test_the_series_of_one_task_in_several_records_share_an_axis():
    size = tiny_config().backbone_config.space.full
    fields = dict(task="occlusion", metric="occlusion_accuracy")
    records = []
    for kind, values in (("random", [0.8, 0.4]), ("salient", [0.4, 0.2])):
        curve = {"x_name": "share", "x": [0, 0.5], "series": {kind: values}}
        records.append(recorded(size, curve, settings={"k": 20, "dropped": kind}, **fields))
    random, salient = section(*records).charts
    assert random.plot.lines[0].readings[1][:2] == (100, salient.plot.lines[0].readings[0][1])
    assert ":" not in random.title and "(30 test images)" in random.caption
