import itertools
import math
import random

import pytest

from poa_hf import ElasticSpace
from poa_hf.runs.comparison import choose, choose_by, compare, one_per_measure
from poa_hf.runs.evaluations import Evaluation
from poa_hf.runs.metrics import METRICS, Metric, column_title, metric_name

SPACE = ElasticSpace((1, 2, 3), ((1,), (2,)))
SIZES = {str(size): size for size in SPACE}


def record(size, value, k=20, task="knn", **fields):
    settings = {"k": k} if task == "knn" else {}
    common = dict(model="run", dataset="birds", test_split="test", test_images=100, date="2026-11-23", step=50)
    common |= dict(metric=f"{task}_accuracy", settings=settings)
    return Evaluation(size=size, task=task, value=value, **common | fields)


def chosen(*records, metrics=("knn_accuracy",), step=50) -> dict[str, float]:
    found = choose(compare(records, SPACE, step), metrics)
    return {} if found is None else {str(size): value for size, value in found.values.items()}


def test_only_records_that_were_measured_alike_are_compared():
    records = [
        record("1x1", 0.1, step=10), record("1x2", 0.2, step=10), record("2x1", 0.2, step=10),
        record("1x1", 0.3), record("2x1", 0.4), record("2x1", 0.9, k=10), record("3x1", 0.9, k=10),
        record("3x2", 0.9, k=10), record("1x1", 0.8, dataset="fish"), record("9x9", 0.9),
        record("2x1", 0.6, task="linear"), record("-", 0.9), record("2x1", 0.5),
    ]  # fmt: skip
    comparisons = compare(records, SPACE, 50)
    found = choose(comparisons, ["knn_accuracy"])
    assert found.values == {SIZES["1x1"]: 0.3, SIZES["2x1"]: 0.5}
    assert (found.title, found.metric_name, found.step) == ("20-NN", "20-NN accuracy", 50)
    assert found.name == "20-NN accuracy on birds at step 50"
    assert found.description == "20-NN accuracy on birds at step 50 (100 test images)"
    linear = choose(comparisons, ["linear_accuracy"])
    assert (linear.values, linear.title, linear.metric) == ({SIZES["2x1"]: 0.6}, "linear", "linear_accuracy")
    assert choose(comparisons) is found and choose([]) is None
    assert choose(comparisons, ["retrieval_map", "linear_accuracy"]) is linear


def test_a_measure_is_named_by_its_task_its_metric_or_as_it_is_shown():
    lowshot = dict(task="lowshot", metric="lowshot_accuracy")
    records = [
        record("1x1", 0.1, k=10), record("1x1", 0.2), record("1x1", 0.3, settings={"label_share": 0.1}, **lowshot),
        record("1x1", 0.4, settings={"label_share": 0.01}, **lowshot),
        record("1x1", 0.5, task="clustering", metric="clustering_nmi"),
        record("1x1", 0.6, task="clustering", metric="clustering_ari"),
        record("1x1", 0.7, task="taste", metric="sweetness"),
    ]  # fmt: skip

    def value(measure, comparisons=compare(records, SPACE, 50)):  # noqa: B008
        return choose_by(comparisons, measure).values[SIZES["1x1"]]

    names = {"knn": 0.2, "20-NN": 0.2, "10-NN accuracy": 0.1, "1 % labels": 0.4, "10 % labels": 0.3, None: 0.2}
    names |= {"clustering": 0.6, "clustering_nmi": 0.5, "NMI": 0.5, "taste": 0.7, "sweetness": 0.7}
    assert {name: value(name) for name in names} == names
    assert value(None, compare(records[2:], SPACE, 50)) in (0.3, 0.4)  # the first of the table
    with pytest.raises(ValueError, match="'linear' was not measured: choose from knn, lowshot, clustering, taste, or"):
        value("linear")
    assert choose_by([], "clustering_nmi") is None and choose_by([], None) is None
    with pytest.raises(ValueError, match="'taste' is neither a task nor a metric: choose from knn, linear"):
        choose_by([], "taste")


def test_the_model_counts_before_the_other_steps():
    records = [record("1x1", 0.1, step=10), record("1x1", 0.3, step=30), record("1x1", 0.4, step=None)]
    assert chosen(*records, step=30) == {"1x1": 0.3} and chosen(*records, step=None) == {"1x1": 0.4}
    assert chosen(*records, step=20) == {"1x1": 0.4}  # nothing says that this is not of the model
    assert chosen(*records[:2], step=None) == {"1x1": 0.3}  # the latest
    assert chosen(*records[:2], step=21) == {"1x1": 0.3} and chosen(*records[:2], step=19) == {"1x1": 0.1}
    assert chosen(*records[:2], step=20) == {"1x1": 0.1}
    many = [record(size, 0.9, step=10) for size in SIZES]
    assert chosen(*many, record("1x1", 0.3, k=10)) == {"1x1": 0.3}


def test_then_the_usual_k_then_sizes_then_images_then_the_day():
    assert chosen(record("1x1", 0.1, k=19), record("1x1", 0.2, k=200), record("1x1", 0.3, k=21)) == {"1x1": 0.1}
    two = [record("1x1", 0.50, test_images=1000), record("1x2", 0.60, test_images=1000)]
    assert chosen(*two, record("1x1", 0.55, test_images=5000)) == {"1x1": 0.50, "1x2": 0.60}
    assert chosen(*two[:1], record("1x1", 0.55, test_images=5000)) == {"1x1": 0.55}
    trained = [record("1x1", 0.1 * n, train_split="train", train_images=n) for n in (1, 3, 2)]
    assert chosen(*trained) == {"1x1": 0.1 * 3}
    seeds = [record("1x1", 0.1 * n, settings={"k": 20, "seed": n}, date=f"2026-11-0{10 - n}") for n in (2, 1, 3)]
    assert chosen(*seeds) == {"1x1": 0.1}


def test_of_one_size_the_latest_record_counts_whatever_the_run_was_called():
    records = [record("1x1", 0.1), record("1x1", 0.2, model="renamed"), record("1x2", 0.3, date="2026-11-24")]
    assert chosen(*records) == {"1x1": 0.2, "1x2": 0.3}
    assert chosen(*records, record("1x1", 0.9, model="earlier", date="2026-11-22")) == {"1x1": 0.2, "1x2": 0.3}


def test_what_is_no_number_or_no_size_of_the_run_is_left_out():
    records = [record("1x1", math.nan), record("1x2", math.inf), record("-", 0.5), record("7x7", 0.5)]
    records.append(record("2x1", -1e308))
    assert compare(records, SPACE, 50) == []
    assert chosen(*records, record("1x1", 0.1, date="2026-11-20")) == {"1x1": 0.1}


def test_of_each_measure_one_set_counts_and_of_a_size_without_it_the_next():
    records = [
        record("1x1", 0.50), record("1x2", 0.60), record("1x1", 0.55, test_images=500),
        record("2x1", 0.70, test_images=50), record("1x1", 0.40, k=10), record("1x1", 0.30, test_split="validation"),
        record("1x1", 0.20, dataset_config="v2"), record("1x1", 0.10, task="linear"), record("1x1", 0.45, step=None),
    ]  # fmt: skip
    comparisons = compare(records, SPACE, 50)

    def values(size):
        return sorted(found.values[SIZES[size]] for found in one_per_measure(comparisons, SIZES[size]))

    assert values("1x1") == [0.1, 0.2, 0.3, 0.4, 0.5] and values("1x2") == [0.6] and values("2x1") == [0.7]
    assert choose(comparisons) in one_per_measure(comparisons) and values("3x1") == []


def test_the_order_is_total_and_does_not_depend_on_that_of_the_records():
    generator = random.Random(0)
    records = [random_record(generator, index) for index in range(60)]
    keys = {(r.key.replace(r.size, ""), r.size): r for r in records}  # one each, so that none is later than another
    records = [*keys.values()]
    expected = compare(records, SPACE, 50)
    assert len(expected) > 20
    for _ in range(5):
        generator.shuffle(records)
        assert compare(records, SPACE, 50) == expected


def random_record(generator: random.Random, index: int, sizes=tuple(SIZES)) -> Evaluation:
    """A record of one of many kinds, some of them rare; its value, of four digits, tells which it is."""

    def mostly(usual, other):
        return generator.choice((usual, usual, usual, usual, other))

    task, metric, settings = generator.choice(
        [
            ("knn", "knn_accuracy", {"k": mostly(20, 10)}),
            ("knn", "knn_accuracy", {"k": 20}),
            ("linear", "linear_accuracy", {"seed": mostly(0, 1)}),
            mostly(("linear", "linear_accuracy", {"seed": 0}), ("clustering", "clustering_nmi", {})),
        ]
    )
    train = None if task == "clustering" else mostly(200, 1000)
    return Evaluation(
        model="run", size=generator.choice(sizes), task=task, metric=metric, value=0.0001 + index / 1000,
        dataset=mostly("birds", "fish"), test_split=mostly("test", "validation"),
        test_images=generator.choice((100, 1000)), date=f"2026-11-{generator.randrange(10, 13)}",
        train_split=train and "train", train_images=train, step=generator.choice((None, 40, 50, 50, 50)),
        settings=settings,
    )  # fmt: skip


def test_every_metric_has_one_title_and_one_name():
    settings = {"k": 5, "label_share": 0.01, "dropped": "salient", "within": 8}
    records = [record("1x1", 0.5, metric=metric, settings=settings) for metric in METRICS]
    titles = list(map(column_title, records))
    assert titles[:8] == ["5-NN", "linear", "1 % labels", "ACC", "ARI", "NMI", "mAP", "P@5"]
    assert {"occlusion (salient)", "5-NN mIoU", "corruptions", "found (8 px)"} <= set(titles)
    assert len(set(map(metric_name, records))) == len(METRICS)
    assert metric_name(record("1x1", 0.5, metric="occlusion_accuracy", settings=settings)) == (
        "5-NN accuracy with salient patches dropped"
    )
    unknown = record("1x1", 0.5, metric="depth {k} error", settings={})
    assert column_title(unknown) == metric_name(unknown) == "depth {k} error"
    assert all(a != b for a, b in itertools.combinations(titles, 2))


def test_of_a_metric_measured_in_several_ways_the_usual_one_counts():
    ways = [
        record(size, 0.5, task="occlusion", metric="occlusion_accuracy", settings={"dropped": dropped})
        for dropped in ("non-salient", "random", "salient")
        for size in ("1x1", "2x1")[: 1 if dropped == "random" else 2]
    ]
    found = compare(ways, SPACE, 50)
    assert [each.example.settings["dropped"] for each in found] == ["random", "non-salient", "salient"]


def test_intervals_of_some_sizes():
    ends = {"1x1": [0.25, 0.75], "1x2": None, "2x1": [0.0, math.inf], "3x1": [1, 1]}
    found = compare([record(size, 0.5, interval=interval) for size, interval in ends.items()], SPACE)[0]
    assert found.intervals == {SIZES["1x1"]: (0.25, 0.75), SIZES["3x1"]: (1, 1)}


def test_of_an_error_the_lowest_value_is_the_best(monkeypatch):
    error = Metric("depth", "RMSE", "depth RMSE", "rmse", higher_is_better=False, is_share=False)
    monkeypatch.setitem(METRICS, "depth_rmse", error)
    errors = [record(size, value, task="depth", metric="depth_rmse") for size, value in (("1x1", 2.5), ("2x1", 0.25))]
    found = choose(compare(errors, SPACE, 50), ["depth_rmse"])
    assert found.best == SIZES["2x1"] and found.values[SIZES["2x1"]] == 0.25
    assert found.worth == {SIZES["1x1"]: -2.5, SIZES["2x1"]: -0.25}
    accuracies = compare([record("1x1", 0.5), record("2x1", 0.25)], SPACE, 50)
    assert accuracies[0].best == SIZES["1x1"] and accuracies[0].worth == accuracies[0].values
    assert error.shown(12.345) == "12.3" and METRICS["knn_accuracy"].shown(0.5) == "50.0 %"
