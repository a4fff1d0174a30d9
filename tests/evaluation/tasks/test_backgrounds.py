import io

import numpy as np
import pytest
import torch
from PIL import Image

from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.alterations.alteration import AlteredFeatures, AlteredSplit, ModelInput
from poa_hf.evaluation.alterations.backgrounds import background_of
from poa_hf.evaluation.data.coinciding import identify
from poa_hf.evaluation.data.masked import MaskedImages
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.features import class_features
from poa_hf.evaluation.labelled import LabelledImages
from poa_hf.evaluation.splits import EvaluationData
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import LabelledFeatures, TaskOptions, alterations_of, run_task
from poa_hf.evaluation.tasks.backgrounds import KINDS, OtherBackground
from poa_hf.evaluation.tasks.knn import knn_predictions

from ..image_folders import disc, masked_table, table

PROCESSOR = evaluation_processor(32, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
EMPTY, FULL = Image.new("L", (40, 40)), Image.new("L", (40, 40), 1)
# The third image has no foreground, and the sixth no background.
MASKS = [{2: EMPTY, 5: FULL}.get(number, Image.fromarray(disc(radius=10 + number % 5))) for number in range(24)]
OPTIONS = TaskOptions(k=(5,), seed=2)


def altered(images: MaskedImages, kind: str, seed: int = 2) -> list:
    """The images of a split with other backgrounds."""
    alteration = OtherBackground(kind, seed).ready(AlteredSplit(images, {"num_channels": 3}))
    rows = [row for _, batch in images.batches(7) for row in batch]
    pictures = [Image.open(io.BytesIO(row.image["bytes"])).convert("RGB") for row in rows]
    return [
        alteration.alter(picture, row, identify(row.image, row.name, picture).hash)
        for picture, row in zip(pictures, rows, strict=True)
    ]


def test_each_image_keeps_its_foreground_on_the_background_of_another_one():
    source = masked_table(24, masks=MASKS, classes=3)
    images = MaskedImages(source)
    backgrounds = {
        index: np.asarray(background_of(row["image"], np.asarray(row["mask"]) > 0))
        for index, row in enumerate(source)
        if index != 5
    }
    for kind in ("mixed_same", "mixed_rand"):
        results = altered(images, kind)
        assert [index for index, result in enumerate(results) if result is None] == [2, 5]
        for index, (row, result) in enumerate(zip(source, results, strict=True)):
            if result is None:
                continue
            mask = np.asarray(row["mask"]) > 0
            assert np.array_equal(np.asarray(result)[mask], np.asarray(row["image"])[mask])
            behind = np.asarray(result)[~mask]
            (other,) = [each for each, pixels in backgrounds.items() if np.array_equal(pixels[~mask], behind)]
            assert other != index and (source[other]["label"] == row["label"]) == (kind == "mixed_same")


def test_the_choice_depends_on_the_seed_and_not_on_the_order_of_rows():
    source = masked_table(24, masks=MASKS, classes=3)
    first = altered(MaskedImages(source), "mixed_rand")
    assert [image is None or image.tobytes() for image in first] == [
        image is None or image.tobytes() for image in altered(MaskedImages(source), "mixed_rand")
    ]
    other = altered(MaskedImages(source), "mixed_rand", seed=3)
    same = sum(a == b for a, b in zip(first, other, strict=True) if a is not None)
    assert same < 12


def test_numbers_are_those_of_images_that_were_made_beforehand(tiny_model):
    train, test = table(60), masked_table(24, seed=6, masks=MASKS, classes=3)
    data = EvaluationData(MaskedImages(test), LabelledImages(train), "textures")
    subject = Subject("tiny", tiny_model.teacher, PROCESSOR, step=3)
    records = evaluate_sizes(subject, data, ["32x3"], ["backgrounds", "knn"], OPTIONS, batch_size=7, num_workers=2)
    *by_kind, gap, knn = records
    model, labels = tiny_model.teacher.extract("32x3"), torch.tensor(test["label"])
    memory = class_features(model, [PROCESSOR(list(train["image"]), return_tensors="pt").pixel_values])
    kept = [index for index in range(24) if index not in (2, 5)]

    def right(images):
        pixels = PROCESSOR([images[index] for index in kept], return_tensors="pt").pixel_values
        votes = knn_predictions(memory, torch.tensor(train["label"]), class_features(model, [pixels]), [5])[5]
        return (votes == labels[kept]).double()

    expected = {"original": right(list(test["image"]))}
    expected |= {kind: right(altered(data.test, kind)) for kind in KINDS}
    assert [record.settings["kind"] for record in by_kind] == list(expected)
    for record in by_kind:
        assert record.metric == "backgrounds_accuracy"
        assert record.value == pytest.approx(expected[record.settings["kind"]].mean().item())
        assert record.details == {"images": 22, "left_out": 2} and record.interval[0] <= record.value
    assert gap.metric == "background_gap" and gap.details == {"images": 22, "left_out": 2}
    assert gap.value == pytest.approx((expected["mixed_same"] - expected["mixed_rand"]).mean().item())
    assert knn.metric == "knn_accuracy" and knn.test_images == 24


def test_what_is_missing_is_one_sentence(tiny_model):
    subject = Subject("tiny", tiny_model.teacher, PROCESSOR)
    train = LabelledImages(table(60))

    def evaluated(test):
        return evaluate_sizes(subject, EvaluationData(test, train), ["16x1"], ["backgrounds"], OPTIONS)

    with pytest.raises(ValueError, match="^The task backgrounds needs a mask of the foreground"):
        evaluated(LabelledImages(table(10, seed=6)))
    with pytest.raises(ValueError, match="^All images of the test split are of one class"):
        evaluated(MaskedImages(masked_table(10, seed=6, classes=1)))
    with pytest.raises(ValueError, match="^Row 3 of the test split has an image of 40 x 40 pixels, but a mask of 39"):
        masks = [Image.fromarray(disc(40 - (number == 3))) for number in range(10)]
        evaluated(MaskedImages(masked_table(10, seed=6, masks=masks)))
    with pytest.raises(
        ValueError, match="^The task backgrounds finds nothing of the kind original to measure, as no test"
    ):
        evaluated(MaskedImages(masked_table(10, seed=6, masks=[EMPTY] * 10)))


@pytest.mark.parametrize("lost", [0, 3])
def test_the_interval_of_the_gap_is_that_of_a_difference(lost):
    """Few images that differ, and none that differs the other way, leave it open whether there is a gap."""
    features, labels = torch.eye(8), torch.arange(8)
    wrong = torch.cat([features[:lost].roll(1, dims=1), features[lost:]])
    by_kind = {
        alteration: AlteredFeatures(wrong if alteration.kind == "mixed_rand" else features, labels >= 0)
        for alteration in alterations_of(["backgrounds"], OPTIONS, ModelInput(32, 32))
    }
    splits = LabelledFeatures(features, labels), LabelledFeatures(features, labels, by_kind)
    *_, gap = run_task("backgrounds", *splits, 8, TaskOptions(k=(1,), seed=2), torch.device("cpu"))
    p, q = (lost + 1) / 10, 1 / 10  # Bonett and Price 2012: a count of one more of each kind in two more images
    half = 1.959964 * np.sqrt((p + q - (p - q) ** 2) / 10)
    assert gap.metric == "background_gap" and gap.value == lost / 8
    assert gap.interval == pytest.approx((p - q - half, p - q + half)) and gap.interval[0] < 0 < gap.interval[1]


def test_no_image_has_another_of_its_class():
    features, everything = torch.eye(8), torch.ones(8, dtype=torch.bool)
    by_kind = {
        alteration: AlteredFeatures(features, ~everything if alteration.kind == "mixed_same" else everything)
        for alteration in alterations_of(["backgrounds"], OPTIONS, ModelInput(32, 32))
    }
    splits = LabelledFeatures(features, torch.arange(8)), LabelledFeatures(features, torch.arange(8), by_kind)
    with pytest.raises(ValueError, match="nothing of the kind mixed_same to measure, as no test image has another one"):
        run_task("backgrounds", *splits, 8, OPTIONS, torch.device("cpu"))
