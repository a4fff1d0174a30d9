import numpy as np
import pytest
import torch

from poa_hf.cli.main import main
from poa_hf.data.processor import evaluation_processor, resized_images
from poa_hf.evaluation.alterations.alteration import ModelInput, random_of
from poa_hf.evaluation.alterations.corruptions import CORRUPTIONS, corrupted
from poa_hf.evaluation.data.coinciding import identify
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.features import class_features
from poa_hf.evaluation.labelled import LabelledImages
from poa_hf.evaluation.splits import EvaluationData
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import TaskOptions, alterations_of, check_tasks
from poa_hf.evaluation.tasks.knn import knn_predictions

from ..image_folders import table

PROCESSOR = evaluation_processor(32, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
OPTIONS = TaskOptions(k=(5,), seed=2, corruptions=("jpeg", "gaussian_noise"), corruption_strengths=(5, 2))


def test_the_number_is_the_mean_accuracy_on_images_that_were_corrupted_beforehand(tiny_model):
    train, test = table(60), table(30, seed=6)
    data = EvaluationData(LabelledImages(test, name="test"), LabelledImages(train), "textures")
    subject = Subject("tiny", tiny_model.teacher, PROCESSOR, step=3)
    [record] = evaluate_sizes(subject, data, ["32x3"], ["corruptions"], OPTIONS)
    model = tiny_model.teacher.extract("32x3")

    def accuracy(images):
        votes = knn_predictions(memory, torch.tensor(train["label"]), class_features(model, [images]), [5])[5]
        return (votes == torch.tensor(test["label"])).double().mean().item()

    memory = class_features(model, [PROCESSOR(list(train["image"]), return_tensors="pt").pixel_values])
    clean = accuracy(PROCESSOR(list(test["image"]), return_tensors="pt").pixel_values)
    stored = test.cast_column("image", type(test.features["image"])(decode=False))
    hashes = [identify(row["image"], "", row["image"]).hash for row in stored]
    seen = resized_images(PROCESSOR, list(test["image"]))
    values = {}
    for name in ("gaussian_noise", "jpeg"):
        values[name] = [clean]
        for strength in (2, 5):
            changed = [
                corrupted(image, name, strength, random_of(image_hash, 2, name))
                for image, image_hash in zip(seen, hashes, strict=True)
            ]
            pixels = torch.tensor(np.stack([np.asarray(image) for image in changed])).permute(0, 3, 1, 2) / 255
            mean, std = (torch.tensor(each)[:, None, None] for each in (PROCESSOR.image_mean, PROCESSOR.image_std))
            values[name].append(accuracy((pixels - mean) / std))
    expected = np.mean([values["gaussian_noise"][1:], values["jpeg"][1:]])
    assert record.metric == "corruptions_accuracy" and record.value == pytest.approx(expected)
    assert record.settings == {
        "corruptions": ["gaussian_noise", "jpeg"], "strengths": [2, 5], "seed": 2, "k": 5, "temperature": 0.07,
    }  # fmt: skip
    details = record.details
    assert details["curve"]["x"] == [0, 2, 5] and details["curve"]["series"].keys() == values.keys()
    for name, curve in values.items():
        assert details["curve"]["series"][name] == pytest.approx(curve)
        assert details["accuracies"][name] == pytest.approx(np.mean(curve[1:]))
        assert details["relative_accuracies"][name] == pytest.approx(np.mean(curve[1:]) / clean)
    assert details["clean_accuracy"] == pytest.approx(clean)
    assert details["relative_accuracy"] == pytest.approx(record.value / clean)
    assert record.interval[0] < record.value < record.interval[1]


def test_all_corruptions_at_all_strengths_by_default():
    alterations = alterations_of(["corruptions"], TaskOptions(), ModelInput(224, 224))
    assert [(each.name, each.strength) for each in alterations] == [(n, s) for n in CORRUPTIONS for s in range(1, 6)]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"corruptions": ("jpg",)}, "^'jpg' is not a corruption: .*jpeg"),
        ({"corruption_strengths": (0, 3)}, "corruption_strengths"),
        ({"corruption_strengths": (6,)}, "corruption_strengths"),
        ({"corruption_strengths": (1.5,)}, "corruption_strengths"),
    ],
)
def test_options_that_are_not_valid(options, message):
    with pytest.raises(ValueError, match=message):
        check_tasks(["corruptions"], TaskOptions(**options), None)


def test_the_help_of_the_command_names_every_corruption(capsys):
    assert main(["evaluate", "--help"]) == 0
    assert f"some of {', '.join(CORRUPTIONS)} (" in " ".join(capsys.readouterr().out.split())
