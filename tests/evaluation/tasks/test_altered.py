from types import SimpleNamespace

import datasets
import pytest
import torch

from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation import evaluator as module
from poa_hf.evaluation.alterations.alteration import AlteredFeatures
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.features import class_features
from poa_hf.evaluation.images.split_features import image_features
from poa_hf.evaluation.labelled import LabelledImages
from poa_hf.evaluation.splits import EvaluationData
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import LabelledFeatures, TaskOptions
from poa_hf.evaluation.tasks.altered import AlteredAccuracy
from poa_hf.evaluation.tasks.knn import knn_predictions

from ..image_folders import table

PROCESSOR = evaluation_processor(32, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
OPTIONS = TaskOptions(k=(5,), occlusion_ratios=(0.75, 0.25), shuffle_grids=(4,), seed=2)


@pytest.fixture
def subject(tiny_model) -> Subject:
    return Subject("tiny", tiny_model.teacher, PROCESSOR, step=3)


@pytest.fixture(scope="module")
def data() -> EvaluationData:
    return EvaluationData(LabelledImages(table(40, seed=6), name="test"), LabelledImages(table(60)), "textures")


def pixels(dataset: datasets.Dataset) -> torch.Tensor:
    return PROCESSOR([row["image"] for row in dataset], return_tensors="pt").pixel_values


def test_accuracy_is_that_of_altered_images_among_train_images_as_they_are(subject, data):
    """Against a set of test images that was altered beforehand, and features of the extracted model."""
    records = evaluate_sizes(subject, data, ["16x1", "32x3"], ["occlusion", "shuffle"], OPTIONS)
    assert [(record.size, record.settings.get("dropped")) for record in records] == [
        (size, dropped) for size in ("16x1", "32x3") for dropped in ("random", "salient", "non-salient", None)
    ]
    train, test = table(60), table(40, seed=6)
    labels = torch.tensor(train["label"]), torch.tensor(test["label"])
    alterations = module.alterations_of(["occlusion", "shuffle"], OPTIONS, subject.input)
    images = pixels(test)
    found = image_features(
        {"pixels": lambda pixel_values: _Output(pixel_values)},
        data.test,
        PROCESSOR,
        {"pixels": 0},
        module.Processes(),
        alterations=alterations,
        guide=module.patch_saliency(subject.model),
    )
    altered = {key: value.features.view_as(images) for key, value in found.altered["pixels"].items()}
    for record in records:
        model = subject.model.extract(record.size)
        memory = class_features(model, [pixels(train)])
        chosen = [key for key in altered if getattr(key, "dropped", None) == record.settings.get("dropped")]
        right = []
        for batch in (images, *(altered[key] for key in chosen)):
            votes = knn_predictions(memory, labels[0], class_features(model, [batch]), [5])[5]
            right.append((votes == labels[1]).double())
        curve = record.details["curve"]
        (series,) = curve["series"].values()
        assert series == pytest.approx([values.mean().item() for values in right])
        assert record.value == pytest.approx(torch.stack(right[1:]).mean().item())
        assert curve["x"] == ([0, 0.25, 0.75] if record.task == "occlusion" else [1, 4])
        assert record.details["clean_accuracy"] == series[0] and record.interval is not None
        expected = {"ratios": [0.25, 0.75], "grid": 4} if record.task == "occlusion" else {"grids": [4]}
        assert record.settings.items() >= (expected | {"k": 5, "seed": 2}).items()


class _Output:
    """Pixels as the features of an image."""

    def __init__(self, pixel_values):
        self.pooler_output = pixel_values


def test_batches_passes_and_workers_change_nothing(subject, data, caplog):
    sizes, tasks = ["16x1", "32x1"], ["occlusion", "shuffle"]
    whole = evaluate_sizes(subject, data, sizes, tasks, OPTIONS)
    assert evaluate_sizes(subject, data, sizes, tasks, OPTIONS, batch_size=7, num_workers=1) == whole
    caplog.set_level("INFO", "poa_hf")
    # of 60 train images, and of 40 test images as they are and with 7 alterations: 48 channels in all
    parts = evaluate_sizes(subject, data, sizes, tasks, OPTIONS, feature_memory_gb=4 * 380 * 40e-9)
    assert parts == whole and "Pass 2 of 2" in caplog.text
    caplog.clear()
    assert evaluate_sizes(subject, data, sizes, tasks, OPTIONS, feature_memory_gb=4 * 380 * 48e-9) == whole
    assert "Pass" not in caplog.text


def test_images_that_an_alteration_leaves_out_count_for_no_point():
    labels = torch.tensor([0, 1, 0, 1])
    train = LabelledFeatures(torch.eye(2), torch.tensor([0, 1]))
    test = LabelledFeatures(torch.eye(2)[labels], labels)
    accuracy = AlteredAccuracy(train, test, 2, TaskOptions(k=(1,)), torch.device("cpu"))
    first = AlteredFeatures(torch.eye(2)[[0, 0, 0, 1]], torch.tensor([True, True, False, True]))
    second = AlteredFeatures(torch.eye(2)[[1, 1, 1, 1]], torch.tensor([True, True, True, True]))
    score = accuracy.curve_score("accuracy", "some", "strength", [(1, first), (2, second)], 0, {"seed": 0})
    assert score.details["curve"]["series"]["some"] == pytest.approx([1, 2 / 3, 2 / 3])
    assert score.value == pytest.approx(2 / 3) and score.settings == {"seed": 0, "k": 1, "temperature": 0.07}
    torch.testing.assert_close(score.outcomes, torch.tensor([0.5, 0.5, torch.nan, 1]).double(), equal_nan=True)


@pytest.mark.parametrize("hidden", [None, torch.zeros(1, 5, 3)])
def test_models_that_do_not_tell_what_is_salient_are_refused_before_any_work(data, hidden):
    subject = Subject("odd", _NoPatches(hidden), PROCESSOR)
    with pytest.raises(ValueError, match="has no last_hidden_state|^_NoPatches does not tell which patches") as error:
        evaluate_sizes(subject, data, tasks=["occlusion"], options=OPTIONS)
    assert "\n" not in str(error.value)
    assert len(evaluate_sizes(subject, data, tasks=["shuffle"], options=OPTIONS)) == 1


class _NoPatches(torch.nn.Module):
    """A model with features of images only, or with tokens that are no patches."""

    def __init__(self, hidden):
        super().__init__()
        self.config = SimpleNamespace(model_type="odd")
        self.device, self.dtype, self.hidden = torch.device("cpu"), torch.float32, hidden

    def forward(self, pixel_values, return_dict=True):
        output = _Output(pixel_values.mean(dim=(2, 3)))
        output.last_hidden_state = self.hidden
        return output
