import json

import pytest
import torch
from scipy import stats
from transformers import Dinov2Config, Dinov2Model

from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.evaluator import Measurement, measure_sizes
from poa_hf.evaluation.features import class_features
from poa_hf.evaluation.splits import open_splits
from poa_hf.evaluation.statistics.comparing import ModelDifference, Side, differences, left_out, pairs_of, split_size
from poa_hf.evaluation.statistics.comparing_table import differences_text, verdict
from poa_hf.evaluation.statistics.paired import BOOTSTRAP, PairedDifference
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import TaskOptions
from poa_hf.models.modeling_poa_vit import PoaViTModel
from poa_hf.runs.evaluations import Evaluation

from ...conftest import tiny_config

PROCESSOR = evaluation_processor(32)


def stock(name: str, seed: int) -> Subject:
    torch.manual_seed(seed)
    shape = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    return Subject(name, Dinov2Model(Dinov2Config(**shape)).eval(), PROCESSOR)


def elastic(name: str) -> Subject:
    return Subject(name, PoaViTModel(tiny_config().backbone_config), PROCESSOR)


def sides(pairs) -> list[str]:
    return [f"{first} {second}" for first, second in pairs]


def test_models_and_sizes_are_told_apart(tmp_path, monkeypatch):
    assert split_size("me/vit@main:small") == ("me/vit@main", "small")
    assert split_size("runs/mine") == ("runs/mine", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a:b").mkdir()
    assert split_size("a:b") == ("a:b", None)  # a folder that exists is meant
    for text in (":small", "run:"):
        with pytest.raises(ValueError, match="names no model and size"):
            split_size(text)


def test_who_is_compared_with_whom():
    subjects = {"run": elastic("run"), "other": elastic("other"), "stock": stock("stock", 0)}

    def found(*texts, **options):
        return sides(pairs_of([split_size(text) for text in texts], subjects, **options))

    assert found("run", "stock") == ["run:32x3 stock"]
    assert found("run:small", "other", "stock") == ["run:16x1 other:32x3", "run:16x1 stock"]
    assert found("run", "other", sizes=["small", "32x3"]) == ["run:16x1 other:16x1", "run:32x3 other:32x3"]
    assert found("run", "stock", sizes=["small", "32x3"]) == ["run:16x1 stock", "run:32x3 stock"]
    assert found("run", sizes=["32x3", "16x1", "16x2"]) == ["run:32x3 run:16x1", "run:32x3 run:16x2"]
    assert len(found("run", sizes=["all"], all_pairs=True)) == 36
    for texts in (("run",), ("stock",)):
        with pytest.raises(ValueError, match=f"nothing to compare {texts[0]} with"):
            found(*texts)
    for texts in (("run", "run:32x3"), ("stock", "stock"), ("run:small", "run:16x1")):
        with pytest.raises(ValueError, match="is compared with itself"):
            found(*texts)
    with pytest.raises(ValueError, match="stock is a checkpoint of one size: leave out :small"):
        found("run", "stock:small")
    with pytest.raises(ValueError, match="9x9 is not a size"):
        found("run", "other:9x9")


def test_one_folder_by_two_names_is_one_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    subjects = {name: stock(name, 0) for name in ("model", "./model", str(tmp_path / "model"))}
    for other in ("./model", str(tmp_path / "model")):
        with pytest.raises(ValueError, match="is compared with itself"):
            pairs_of([("model", None), (other, None)], subjects)


def test_differences_are_those_of_each_image():
    data = open_splits("textures", max_train_images=80, max_test_images=60)
    pair = Side("one", "-"), Side("two", "-")
    measured, right, names = {}, [], []
    for seed, side in enumerate(pair):
        subject = stock(side.source, seed)
        found, images = measure_sizes(
            subject, data, tasks=["knn", "clustering"], options=TaskOptions(k=(1,)), batch_size=16, quiet=True
        )
        measured[side] = found
        names.append(images)
        # by hand: the class of the nearest train image
        features, labels = [], []
        for split in (data.train, data.test):
            rows = [row for _, batch in split.batches(16) for row in batch]
            pixels = PROCESSOR([row.image for row in rows], return_tensors="pt").pixel_values
            features.append(torch.nn.functional.normalize(class_features(subject.model, [pixels]), dim=1))
            labels.append(torch.tensor([row.label for row in rows]))
        right.append(labels[0][(features[1] @ features[0].T).argmax(dim=1)] == labels[1])
    assert names[0] == names[1] and len(names[0]) == 60
    knn, clusters, nmi, rand = differences([pair], measured)
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert (knn.paired.first_better, knn.paired.second_better) == (only_first, only_second) and only_first
    assert knn.paired.p_value == stats.binomtest(only_first, only_first + only_second).pvalue
    assert knn.paired.difference == pytest.approx(knn.records[0].value - knn.records[1].value)
    assert knn.adjusted_p_value >= knn.paired.p_value
    for each, name in ((nmi, "clustering_nmi"), (rand, "clustering_ari")):
        low, high = each.paired.interval
        assert each.records[0].metric == name and low < each.paired.difference < high
        assert each.paired.test == BOOTSTRAP and each.paired.first_better is None
    assert clusters.records[0].metric == "clustering_accuracy"
    assert left_out(measured) == []
    assert json.loads(json.dumps(knn.to_dict()))["first"] == "one"
    text = differences_text([knn, clusters, nmi], ["other number"])
    assert "A  one\nB  two\n" in text and "Compared on textures (60 test images classified by 80 train images)" in text
    assert text.count("With 60 test images, no difference between A and B") == 3
    assert "Other number: not compared" in text


def test_a_measure_that_was_taken_twice_is_compared_once():
    """More comparisons would make Holm's p values larger."""
    record = Evaluation("run", "-", "knn", "knn_accuracy", 0.5, "birds", "test", 8, "2026-11-27")
    pair = Side("one", "-"), Side("two", "-")
    once = {side: [Measurement(record, outcomes=torch.full((8,), float(side is pair[0])))] for side in pair}
    twice = {side: 2 * measured for side, measured in once.items()}
    (found,) = differences([pair], twice)
    assert [found] == differences([pair], once) and found.adjusted_p_value == found.paired.p_value


def test_measures_that_are_no_means_over_images_are_not_enough():
    record = Evaluation("run", "-", "clustering", "clustering_nmi", 0.5, "birds", "test", 10, "2026-11-27")
    pair = Side("one", "-"), Side("two", "-")
    with pytest.raises(ValueError, match="nothing that can be compared image by image"):
        differences([pair], {side: [Measurement(record)] for side in pair})


def difference(value: float, p_value: float, metric: str = "knn_accuracy", interval=(-0.01, 0.052)) -> ModelDifference:
    record = Evaluation("run", "-", "knn", metric, 0.5, "birds", "test", 1000, "2026-11-27", settings={"k": 20})
    paired = PairedDifference(value, interval, p_value, "McNemar's exact test", 1000, 30, 10)
    return ModelDifference(Side("one", "16x1"), Side("two", "-"), (record, record), paired, p_value)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            difference(0.02, 0.2),
            "With 1,000 test images, no difference between one:16x1 and two in 20-NN accuracy can be shown (95 % "
            "interval -1.0 to +5.2, p = 0.20); one of more than 5.2 points is unlikely.",
        ),
        (
            difference(0.02, 0.0123, interval=(0.001, 0.04)),
            "one:16x1 is better than two: 20-NN accuracy differs by 2.0 points (95 % interval 0.1 to 4.0, p = 0.012).",
        ),
        (
            difference(-0.02, 1e-9, interval=(-0.03, -0.01)),
            "two is better than one:16x1: 20-NN accuracy differs by 2.0 points (95 % interval 1.0 to 3.0, p < 0.0001).",
        ),
        (
            difference(0.0, 1.0, interval=None),
            "With 1,000 test images, no difference between one:16x1 and two in 20-NN accuracy can be shown (95 % "
            "interval -, p = 1.00).",
        ),
    ],
)  # fmt: skip
def test_a_verdict_is_one_sentence(found, expected):
    assert verdict(found) == expected


def test_of_many_differences_only_those_that_are_shown_get_a_sentence():
    text = differences_text([difference(0.02, 0.2)] * 12 + [difference(0.02, 0.001)])
    assert text.count("is better than") == 1 and "12 other differences cannot be shown" in text
    assert "no difference between" not in text


def test_where_lower_values_are_better_the_lower_outcome_is_the_better_one():
    """The pair has 30 images on which the first outcome is higher, and 10 on which the second one is."""
    rows = differences_text([difference(0.02, 0.2), difference(0.02, 0.2, metric="background_gap")]).splitlines()
    counts = [row.split()[-2:] for row in rows if row.startswith("A - B")]
    assert counts == [["30", "10"], ["10", "30"]]
