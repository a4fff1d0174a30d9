import json
import math
import random
import re

import pytest

from poa_hf import ElasticSpace, PoaConfig, PoaViTConfig, SubNetwork
from poa_hf.cli.main import run
from poa_hf.cli.select import select as command
from poa_hf.formatting import format_quantity
from poa_hf.runs.evaluations import Evaluation, save_evaluations
from poa_hf.runs.metrics import METRICS, Metric
from poa_hf.selection import latency_table
from poa_hf.selection.costs import Costs
from poa_hf.selection.latency import Latency
from poa_hf.selection.latency_table import LatencyTable
from poa_hf.selection.select import Budget, parse_quantity, select

from ..conftest import tiny_backbone

SPACE = ElasticSpace((1, 2, 3), ((1,), (2,)))
SIZES = {str(size): size for size in SPACE}
# narrow and deep is slow: 1x2 costs the time of 3x1
PARAMETERS = {"1x1": 10, "1x2": 20, "2x1": 40, "2x2": 80, "3x1": 90, "3x2": 180}
FLOPS = {"1x1": 1, "1x2": 3, "2x1": 3, "2x2": 8, "3x1": 7, "3x2": 16}
COSTS = {SIZES[size]: Costs(PARAMETERS[size] * 10**6, FLOPS[size] * 10**9, 1) for size in SIZES}
LATENCY = {SIZES[size]: ms for size, ms in zip(SIZES, (2.0, 4.0, 3.0, 6.0, 4.0, 8.0), strict=True)}


def chosen(*names):
    return [SIZES[name] for name in names]


def test_without_quality_the_largest_within_the_budget_is_best():
    found = select(SPACE, Budget(max_params="85M", max_flops="8G"), COSTS)
    assert found.within == chosen("2x2", "2x1", "1x2", "1x1")
    assert (found.best, found.runner_up) == (SIZES["2x2"], SIZES["2x1"])
    assert found.pareto_front == chosen("2x2", "2x1", "1x1")  # 1x2 is smaller than 2x1 and as expensive
    found = select(SPACE, Budget(max_latency_ms=4), COSTS, latency=LATENCY)
    assert found.within == chosen("3x1", "2x1", "1x2", "1x1")
    assert found.pareto_front == chosen("3x1", "2x1", "1x1")
    assert select(SPACE, Budget(max_params=10e6), COSTS).runner_up is None


def test_equal_sizes_go_by_flops():
    costs = dict(COSTS) | {SIZES["2x2"]: Costs(90 * 10**6, 8 * 10**9, 1)}
    assert select(SPACE, Budget(max_params="90M"), costs).within[:2] == chosen("3x1", "2x2")


def test_measured_quality_comes_before_size_and_what_was_not_measured_after():
    quality = {SIZES["1x2"]: 0.6, SIZES["2x1"]: 0.7, SIZES["3x1"]: 0.7, SIZES["3x2"]: 0.9, SIZES["1x1"]: float("nan")}
    found = select(SPACE, Budget(max_params="100M"), COSTS, quality)
    # equal quality: the cheaper first; not measured (2x2, 1x1): last, by size
    assert found.within == chosen("2x1", "3x1", "1x2", "2x2", "1x1")
    assert found.pareto_front == chosen("2x1", "1x2")
    assert select(SPACE, Budget(), COSTS, quality).best == SIZES["3x2"]
    assert select(SPACE, Budget(max_params="15M"), COSTS, quality).best == SIZES["1x1"]


def test_the_front_is_what_nothing_beats():
    generator = random.Random(0)
    space = ElasticSpace(tuple(range(1, 13)), tuple((depth,) for depth in range(1, 13)))
    costs = {size: Costs(generator.randrange(30), generator.randrange(30), 1) for size in space}
    time = {size: generator.randrange(1, 30) for size in space}
    quality = {size: generator.randrange(30) for size in space}
    found = select(space, Budget(max_flops=25, max_latency_ms=25), costs, quality, time)

    def beats(one, other):
        mine, theirs = ((-quality[size], costs[size].flops, time[size]) for size in (one, other))
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))

    unbeaten = {size for size in found.within if not any(beats(other, size) for other in found.within)}
    assert set(found.pareto_front) == unbeaten and len(unbeaten) > 5
    assert [quality[size] for size in found.pareto_front] == sorted(map(quality.get, unbeaten), reverse=True)
    assert len(select(space, Budget(), costs, quality, time).pareto_front) > len(unbeaten)  # parameters too


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget("1M"), "No size fits max_params 1M: the cheapest, 1x1, has 10M parameters."),
        (Budget(max_flops="0.5G"), "No size fits max_flops 500M: the cheapest, 1x1, has 1G FLOPs."),
        (Budget("200M", max_latency_ms=1), "No size fits max_latency_ms 1: the cheapest, 1x1, takes 2 ms."),
    ],
)
def test_an_impossible_budget_says_what_the_cheapest_costs(budget, message):
    with pytest.raises(ValueError, match=message):
        select(SPACE, budget, COSTS, latency=LATENCY)


def test_limits_that_exclude_each_other_name_what_comes_closest():
    costs = {SIZES["1x1"]: Costs(10, 60, 1), SIZES["1x2"]: Costs(40, 30, 1)}
    sentence = "No size fits max_params 20 and max_flops 50 together: 1x1 comes closest, with 10 parameters, 60 FLOPs."
    with pytest.raises(ValueError, match=sentence):
        select(ElasticSpace((1,), ((1,), (2,))), Budget(20, 50), costs)


def test_predicted_sizes_rank_between_measured_ones_and_the_rest():
    quality, predicted = {SIZES["1x2"]: 0.1}, {SIZES["2x2"]: 0.6, SIZES["2x1"]: 0.7, SIZES["1x1"]: float("nan")}
    found = select(SPACE, Budget(), COSTS, quality, predicted=predicted)
    assert found.within == chosen("1x2", "2x1", "2x2", "3x2", "3x1", "1x1")
    assert found.pareto_front == chosen("1x2")
    found = select(SPACE, Budget(max_flops="8G"), COSTS, {SIZES["3x2"]: 0.9}, predicted=predicted)
    assert found.best == SIZES["2x1"] and found.pareto_front == chosen("2x1")


def test_a_configuration_or_a_space_with_costs_is_needed():
    config = PoaViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
    assert select(config, Budget()).best == config.space.full
    assert select(PoaConfig(backbone_config=config), Budget(max_params="1M")).best == config.space.full
    with pytest.raises(ValueError, match="A space has no costs by itself"):
        select(config.space, Budget())
    with pytest.raises(ValueError, match="max_latency_ms needs latencies"):
        select(SPACE, Budget(max_latency_ms=4), COSTS)
    with pytest.raises(ValueError, match="The latencies lack 1x2: pass those of every size"):
        select(SPACE, Budget(max_latency_ms=4), COSTS, latency={SIZES["1x1"]: 1.0})
    with pytest.raises(ValueError, match="The costs lack 1x1"):
        select(SPACE, Budget(), {})


def test_quantities_are_read_and_written():
    cases = {"30M": 30e6, "5g": 5e9, "1.5e3": 1500, " 7 k": 7000, ".5B": 5e8, "2T": 2e12, "4": 4, 4: 4, 2.5: 2.5}
    assert {text: parse_quantity(text) for text in cases} == cases
    shown = {21_675_264: "21.7M", 999_700_000: "1G", 999: "999", 4.598e9: "4.6G", 12_345: "12.3k", 0.04321: "0.0432"}
    assert {value: format_quantity(value) for value in shown} == shown
    for bad, message in {
        "30X": "'30X' is not understood: write a number such as 4, 30M or 5G",
        "M": "'M' is not understood",
        "4 ms or so": "is not understood",
        "-3M": "must be a positive number, not -3e",
        "0": "must be a positive number",
        "1e999": "must be a positive number",
    }.items():
        with pytest.raises(ValueError, match=message):
            Budget(max_params=bad)
    with pytest.raises(ValueError, match="max_latency_ms must be a positive number, not nan"):
        Budget(max_latency_ms=float("nan"))


def record(size, value, k=20, task="knn", **fields):
    settings = {"k": k} if task == "knn" else {}
    common = dict(model="run", dataset="birds", test_split="test", test_images=100, date="2026-11-23", step=50)
    common |= dict(metric=f"{task}_accuracy", settings=settings)
    return Evaluation(size=size, task=task, value=value, **common | fields)


@pytest.fixture
def run_folder(tmp_path):
    """What a run of 24 sizes leaves behind, without weights."""
    backbone = PoaViTConfig(
        hidden_size=64, num_hidden_layers=9, num_attention_heads=4, min_hidden_size=32, min_num_hidden_layers=2,
        image_size=32, patch_size=8,
    )  # fmt: skip
    PoaConfig(backbone_config=backbone).save_pretrained(tmp_path / "my run")
    return tmp_path / "my run"


def outcome(capsys, folder, *options):
    status = run(command, [str(folder), *options])
    return status, capsys.readouterr()


def test_the_command_chooses_and_says_what_to_do_next(run_folder, capsys, tmp_path):
    status, printed = outcome(capsys, run_folder, "--max_params", "200k", "--max_flops", "3M")
    assert status == 0 and not printed.err
    lines = printed.out.splitlines()
    assert lines[0].startswith("14 of 24 sizes fit max_params 200k and max_flops 3M, ranked by parameters")
    assert [line.split()[:2] for line in lines[3:5]] == [["best", "64x3"], ["runner-up", "48x5"]]
    assert lines[-1] == f"next: poa extract '{run_folder}' --size 64x3 --output 'my run-64x3'"
    assert not list(run_folder.glob("latency*"))
    save_evaluations(run_folder, [record("32x2", 0.5), record("48x3", 0.75), record("64x7", 0.7)])
    status, printed = outcome(capsys, run_folder, "--json", str(tmp_path / "all.json"))
    assert "All 24 sizes, ranked by 20-NN accuracy on birds at step 50, measured for 3 of them." in printed.out
    assert "75.0%" in printed.out and "--size 48x3" in printed.out
    saved = json.loads((tmp_path / "all.json").read_text())
    assert saved["best"]["size"] == "48x3" and saved["runner_up"]["quality"] == 0.7
    assert saved["pareto_front"] == ["48x3", "32x2"] and len(saved["sizes"]) == 24 and saved["latency"] is None


def test_sizes_that_were_not_trained_are_named(tmp_path, capsys):
    PoaConfig(backbone_config=tiny_backbone(num_candidates=2), num_prototypes=[8]).save_pretrained(tmp_path)
    status, printed = outcome(capsys, tmp_path, "--max_params", "40k")
    assert status == 0
    best = re.search(r"--size (\S+)", printed.out)[1]
    assert re.search(rf"\b{best}\b.* of weights that were trained for 2 other sizes only\.", printed.out)


def test_any_task_or_metric_ranks_the_sizes(run_folder, capsys, monkeypatch):
    error = Metric("depth", "RMSE", "depth RMSE", "rmse", higher_is_better=False, is_share=False)
    monkeypatch.setitem(METRICS, "depth_rmse", error)
    tasks = {"clustering_nmi": "clustering", "depth_rmse": "depth"}
    values = {"clustering_nmi": (0.5, 0.3), "depth_rmse": (3.25, 1.5)}
    save_evaluations(
        run_folder,
        [
            record(size, value, task=task, metric=metric)
            for metric, task in tasks.items()
            for size, value in zip(("32x2", "64x4"), values[metric], strict=True)
        ],
    )
    for name, best, value in (
        ("clustering", "32x2", "50.0%"),
        ("clustering_nmi", "32x2", "50.0%"),
        ("depth", "64x4", "1.5"),
        ("depth_rmse", "64x4", "1.5"),
    ):
        out = outcome(capsys, run_folder, "--task", name)[1].out
        assert out.splitlines()[3].split()[:2] == ["best", best] and out.splitlines()[3].split()[-1] == value
    assert "front      32x2" not in out and "runner-up  32x2" in out  # cheaper, which the front shows
    default, alias = (outcome(capsys, run_folder, *options)[1].out for options in ((), ("--quality", "clustering")))
    assert "ranked by clustering NMI on birds" in default and default == alias
    status, printed = outcome(capsys, run_folder, "--task", "segmentation")
    expected = "poa: 'segmentation' was not measured: choose from clustering, depth, or measure it by poa evaluate.\n"
    assert status == 2 and printed.err == expected


def test_predicted_qualities_come_after_measured_ones_and_are_marked(run_folder, capsys, tmp_path):
    def quality(size):
        width, depth = map(int, size.split("x"))
        return 0.2 + 0.1 * math.log(width) - 0.02 * math.log(depth)  # the shallow ones are better

    measured = ["32x2", "32x5", "32x9", "48x2", "48x9", "64x4", "64x9"]
    save_evaluations(run_folder, [record(size, quality(size)) for size in measured])
    path = tmp_path / "all.json"
    out = outcome(capsys, run_folder, "--json", str(path))[1].out
    saved = json.loads(path.read_text())
    sizes = {each["size"]: each for each in saved["sizes"]}
    predicted = {size for size, each in sizes.items() if each["predicted_quality"] is not None}
    assert predicted and predicted.isdisjoint(measured) and "64x2" not in predicted  # which would extrapolate
    assert all((each["quality"] is not None) is (size in measured) for size, each in sizes.items())
    for size in predicted:
        assert sizes[size]["predicted_quality"] == pytest.approx(quality(size), abs=0.002)
    assert f"measured for 7 of them and predicted for {len(predicted)}." in out.splitlines()[0]
    assert saved["prediction"]["measured"] == 7 and 0 < saved["prediction"]["mean_error"] < 0.01
    assert saved["best"]["size"] == "64x4" and "~" not in out.splitlines()[3]
    assert set(saved["pareto_front"]) <= set(measured)
    assert "fitted to 7 measured sizes" in out and "64x3" in predicted
    value = f"~{100 * sizes['64x3']['predicted_quality']:.1f}%"
    assert f"64x3 is predicted to be better than the best measured size ({value}): measure it by poa evaluate" in out
    save_evaluations(run_folder, [record("64x2", quality("64x2"))])
    assert "predicted to be better" not in outcome(capsys, run_folder)[1].out
    (run_folder / "evaluations.json").unlink()
    save_evaluations(run_folder, [record(size, quality(size)) for size in measured[:3]])
    assert "~" not in outcome(capsys, run_folder)[1].out  # too few, and of one width


def test_what_the_command_chooses_by_latency_was_measured(run_folder, capsys, monkeypatch):
    def measure(config, sizes, *where):
        asked.extend(map(str, sizes))
        return {size: Latency(1 + size.width * size.depths[0] / 100, 0.1, 10) for size in sizes}

    asked = []
    monkeypatch.setattr(latency_table, "_measure", measure)
    options = ("--max_latency_ms", "3", "--device", "cpu", "--batch_size", "2")
    status, printed = outcome(capsys, run_folder, *options)
    assert status == 0 and asked[:9] == [f"{width}x{depth}" for width in (32, 48, 64) for depth in (2, 6, 9)]
    best = SubNetwork.parse(printed.out.splitlines()[3].split()[1])
    assert str(best) in asked and best.width * best.depths[0] <= 200
    assert "~" not in "".join(printed.out.splitlines()[3:5])
    assert "estimated from" in printed.out and "2 images on cpu" in printed.out
    asked.clear()
    assert outcome(capsys, run_folder, *options)[1].out == printed.out and not asked
    assert outcome(capsys, run_folder, *options, "--measure_all")[0] == 0 and "estimated" not in capsys.readouterr().out


def test_broken_evaluations_are_one_sentence(run_folder, capsys):
    (run_folder / "evaluations.json").write_text("{]")
    status, printed = outcome(capsys, run_folder)
    assert status == 2 and "cannot be read as evaluations" in printed.err and printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--max_params 1k", "No size fits max_params 1k: the cheapest, 32x2, has 3"),
        ("--max_flops 5GHz", "max_flops '5GHz' is not understood: write a number"),
        ("--max_latency_ms -2", "max_latency_ms must be a positive number, not -2."),
        ("--device abacus", "Device 'abacus' is not available here: use cpu"),
        ("--device cpu --batch_size 0", "--batch_size is '0': give a whole number of at least 1."),
        ("--task taste", "'taste' is neither a task nor a metric: choose from knn, linear, lowshot"),
        ("--json {folder}", "cannot be a file: give --json the name"),
        ("--json {folder}/none/x.json", "cannot be a file"),
    ],
)
def test_mistakes_are_one_sentence(run_folder, capsys, options, sentence):
    status, printed = outcome(capsys, run_folder, *options.format(folder=run_folder.parent).split())
    assert status == 2 and printed.out == "" and printed.err.count("\n") == 1
    assert sentence in printed.err


def test_folders_without_an_elastic_model_are_refused(tmp_path, capsys):
    assert "does not exist" in outcome(capsys, tmp_path / "nowhere")[1].err
    PoaViTConfig().stock_config(SubNetwork(384, 12)).save_pretrained(tmp_path)
    sentence = f"{tmp_path} is a checkpoint of one size (dinov2): give the output_dir of a run."
    assert sentence in outcome(capsys, tmp_path)[1].err


def test_a_table_serves_as_latencies():
    table = LatencyTable({}, {}, LATENCY)
    assert select(SPACE, Budget(max_latency_ms="3.5"), COSTS, latency=table).best == SIZES["2x1"]
