import copy
import logging

import datasets
import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation import evaluator as module
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.images.split_features import image_features
from poa_hf.evaluation.labelled import LabelledImages
from poa_hf.evaluation.processes import Processes
from poa_hf.evaluation.splits import EvaluationData
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import IMAGE_TASKS, TaskOptions
from poa_hf.evaluation.tasks.knn import knn_predictions

from .image_folders import table

PROCESSOR = evaluation_processor(32, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture
def subject(tiny_model) -> Subject:
    return Subject("tiny", tiny_model.teacher, PROCESSOR, step=3)


@pytest.fixture(scope="module")
def data() -> EvaluationData:
    return EvaluationData(LabelledImages(table(30, seed=6), name="test"), LabelledImages(table(60)), "textures")


def features_of(subject, images, sizes=("16x1", "32x3"), **options):
    owners = dict.fromkeys(sizes, 0)
    return image_features(subject.callables(sizes), images, subject.processor, owners, Processes(), **options)


def test_every_task_of_several_sizes(subject, data):
    subject.model.train()
    weights = copy.deepcopy(subject.model.state_dict())
    options = TaskOptions(
        k=(5, 20), label_shares=(0.1,), occlusion_ratios=(0.5,), shuffle_grids=(4,), corruption_strengths=(3,)
    )
    sizes = ["16x1", "32x2", "32x3"]
    tasks = [task for task in IMAGE_TASKS if task != "backgrounds"]  # which needs masks
    records = evaluate_sizes(subject, data, sizes, tasks, options)
    assert subject.model.training and all(
        torch.equal(weights[name], t) for name, t in subject.model.state_dict().items()
    )
    assert list(dict.fromkeys(record.size for record in records)) == sizes
    metrics = [record.metric for record in records if record.size == sizes[0]]
    assert metrics == ["knn_accuracy", "knn_accuracy", "linear_accuracy", "lowshot_accuracy", "clustering_accuracy",
                       "clustering_nmi", "clustering_ari", "retrieval_map", "retrieval_precision",
                       "retrieval_precision", "occlusion_accuracy", "occlusion_accuracy", "occlusion_accuracy",
                       "shuffle_accuracy", "corruptions_accuracy"]  # fmt: skip
    assert list(dict.fromkeys(record.task for record in records)) == tasks
    assert len(records) == len(metrics) * len(sizes)
    assert all(-0.5 <= record.value <= 1 and (record.step, record.test_images) == (3, 30) for record in records)
    assert {record.train_images for record in records} == {60, None}  # None for clustering
    train, test = (features_of(subject, split, sizes=("32x3",)) for split in (data.train, data.test))
    votes = knn_predictions(train.features["32x3"], torch.tensor(train.labels), test.features["32x3"], [5, 20])
    for k in (5, 20):
        (record,) = (r for r in records if r.size == "32x3" and r.settings.get("k") == k and r.task == "knn")
        assert record.value == pytest.approx((votes[k] == torch.tensor(test.labels)).double().mean().item())


def test_little_memory_means_more_passes_and_the_same_numbers(subject, data, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "poa_hf")
    options = TaskOptions(k=(5,))
    whole = evaluate_sizes(subject, data, "all", ["knn"], options)
    assert "Pass" not in caplog.text
    # 90 images of 16 channels take 5.8 kB
    parts = evaluate_sizes(subject, data, "all", ["knn"], options, feature_memory_gb=12e-6)
    sizes = len(subject.model.config.space)
    assert parts == whole and f"of {sizes} over" not in caplog.text and "Pass 2 of" in caplog.text
    caplog.clear()
    monkeypatch.setattr(module, "PLAIN_MODELS_KEPT", 1)
    assert evaluate_sizes(subject, data, "all", ["knn"], options) == whole
    assert f"Pass {sizes} of {sizes} over" in caplog.text


def test_usual_ks_that_do_not_fit_are_left_out_aloud(subject, data, caplog):
    records = evaluate_sizes(subject, data, ["16x1"], ["knn"])
    assert [record.settings["k"] for record in records] == [10, 20]
    assert "k-NN with k = 100, 200 is left out: there are 60 train images." in caplog.text
    with pytest.raises(ValueError, match="k = 61 neighbours cannot be found among 60"):
        evaluate_sizes(subject, data, ["16x1"], ["knn"], TaskOptions(k=(10, 61)))
    few = EvaluationData(data.test, LabelledImages(table(5)))
    with pytest.raises(ValueError, match="only 5 images"):
        evaluate_sizes(subject, few, ["16x1"], ["knn"])


def test_classes_without_train_images_are_told(subject, caplog):
    labels = [i % 3 for i in range(30)]
    train = LabelledImages(table(30, label=datasets.Value("int64"), labels=labels))
    test = LabelledImages(table(10, label=datasets.Value("int64"), labels=[0, 1, 2, 3, 0, 1, 2, 3, 0, 1]), name="test")
    records = evaluate_sizes(subject, EvaluationData(test, train), ["16x1"], ["knn", "retrieval"], TaskOptions(k=(3,)))
    assert "1 of 4 classes have no train image, so 20 % of the test images cannot be right" in caplog.text
    assert records[1].details == {"queries": 8}


def test_a_task_that_is_named_twice_counts_once(subject, data):
    records = evaluate_sizes(subject, data, ["16x1"], ["knn", "clustering", "knn"], TaskOptions(k=(5,)))
    assert [record.task for record in records] == ["knn", *["clustering"] * 3]


def test_clustering_needs_no_train_split(subject, data):
    alone = EvaluationData(data.test)
    records = evaluate_sizes(subject, alone, ["16x1"], ["clustering"])
    assert [record.metric for record in records] == ["clustering_accuracy", "clustering_nmi", "clustering_ari"]
    with pytest.raises(ValueError, match="need a train split"):
        evaluate_sizes(subject, alone, ["16x1"], ["clustering", "knn"])


def test_other_models_and_precisions(subject, data):
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    stock = Subject("stock", Dinov2Model(config).eval(), PROCESSOR)
    (record,) = evaluate_sizes(stock, data, tasks=["knn"], options=TaskOptions(k=(5,)), bf16=True)
    assert (record.size, record.model, record.step) == ("-", "stock", None) and record.settings["bf16"] is True
    with pytest.raises(ValueError, match="one size: leave out --sizes"):
        evaluate_sizes(stock, data, "small")
    (record,) = evaluate_sizes(subject, data, ["16x1"], ["knn"], TaskOptions(k=(5,)), bf16=True)
    assert 0 <= record.value <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": "17x1"}, "17x1 is not a size of this model"),
        ({"sizes": []}, "no size"),
        ({"tasks": ["knn", "guess"]}, "'guess' is not a task: choose from knn"),
        ({"tasks": []}, "not a task"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"feature_memory_gb": 0}, "positive"),
        ({"options": TaskOptions(k=(0,))}, "k is .0."),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(subject, data, arguments, message):
    subject.model.forward = None
    with pytest.raises(ValueError, match=message):
        evaluate_sizes(subject, data, **arguments)


def test_passes_hold_what_fits():
    widths = {"a": 10, "b": 10, "c": 20, "d": 100}
    assert module._passes(widths, 25, 2000) == [["a", "b"], ["c"], ["d"]]
    assert module._passes(widths, 25, 1e9) == [["a", "b", "c", "d"]]
