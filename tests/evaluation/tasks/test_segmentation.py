import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from poa_hf.data.processor import evaluation_processor, prepared_images
from poa_hf.evaluation.dense.images import DenseImages
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.record import Measurement
from poa_hf.evaluation.splits import EvaluationData
from poa_hf.evaluation.statistics.comparing import Side, differences
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import Score, TaskOptions
from poa_hf.evaluation.tasks.segmentation import SEGMENTATION, _counts, class_ious
from poa_hf.figures.patches import patch_features
from poa_hf.runs.evaluations import Evaluation

from ..dense.pictures import IGNORED, rows, table

PROCESSOR = evaluation_processor(32)


def numpy_ious(truth: np.ndarray, predicted: np.ndarray, classes: int) -> list[float]:
    """A loop over classes and pixels."""
    ious = []
    for label in range(classes):
        both = either = 0
        for right, found in zip(truth.ravel(), predicted.ravel(), strict=True):
            if right >= 0:
                both += right == label and found == label
                either += right == label or found == label
        ious.append(both / either if either else float("nan"))
    return ious


@pytest.fixture(scope="module")
def stock() -> Subject:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 4}
    return Subject("stock", Dinov2Model(Dinov2Config(**shape)), PROCESSOR)


@pytest.fixture(scope="module")
def data() -> EvaluationData:
    return EvaluationData(DenseImages(table(8, seed=1), name="test"), DenseImages(table(20)), "pictures")


def test_counts_against_a_loop_over_pixels():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 4, 5, generator=generator)
    truth = torch.randint(-1, 4, (20, 30), generator=generator)  # the last class does not occur
    scores[..., 4] = -9
    large = torch.nn.functional.interpolate(scores.permute(2, 0, 1)[None], (20, 30), mode="bilinear")[0].argmax(dim=0)
    found = class_ious(_counts(scores, truth)).numpy()
    np.testing.assert_allclose(found, numpy_ious(truth.numpy(), large.numpy(), 5))
    assert np.isnan(found[4])


def test_pictures_of_plain_colours_are_told_apart_by_both_classifiers(stock, data):
    records = evaluate_sizes(stock, data, tasks=["segmentation"])
    by_metric = {record.metric: record for record in records}
    assert list(by_metric) == ["segmentation_miou", "segmentation_accuracy",
                               "segmentation_knn_miou", "segmentation_knn_accuracy"]  # fmt: skip
    assert all(record.value > 0.75 for record in records), records
    for record in records:
        assert record.interval[0] <= record.value <= record.interval[1]
        assert (record.train_images, record.test_images, record.dataset) == (20, 8, "pictures")
    miou = by_metric["segmentation_miou"]
    assert miou.value == pytest.approx(np.mean(list(miou.details["iou"].values())), abs=1e-5)
    assert list(miou.details["iou"]) == ["0", "1", "2", "3"] and miou.settings["ignored"] == [255]


def test_knn_against_a_naive_reference(stock, data):
    """Majorities, votes, upsampling and IoU, each done anew in NumPy and Pillow."""

    def prepared(row):
        image = Image.fromarray(row["image"]).resize((48, 32), PROCESSOR.resample)
        options = {"do_resize": False, "do_center_crop": False}
        return patch_features(stock.model, prepared_images(PROCESSOR, [image], **options))[0].numpy()  # (8, 12, D)

    memory, labels = [], []
    for row in rows(20):
        features = prepared(row)
        for y in range(8):
            for x in range(12):
                cell = row["mask"][4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
                cell = cell[cell != IGNORED]
                if cell.size:
                    memory.append(features[y, x])
                    labels.append(np.bincount(cell).argmax())
    memory = np.array(memory) / np.linalg.norm(memory, axis=1, keepdims=True)
    truths, predictions = [], []
    for row in rows(8, seed=1):
        queries = prepared(row).reshape(96, -1)
        similarities = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ memory.T
        votes = np.zeros((96, 4))
        for number, line in enumerate(similarities):
            for index in np.argsort(-line)[:20]:
                votes[number, labels[index]] += np.exp((line[index] - line.max()) / 0.07)
        votes = torch.from_numpy((votes / votes.sum(axis=1, keepdims=True)).reshape(1, 8, 12, 4))
        large = torch.nn.functional.interpolate(votes.permute(0, 3, 1, 2), (32, 48), mode="bilinear")[0]
        truths.append(np.where(row["mask"] == IGNORED, -1, row["mask"].astype(int)))
        predictions.append(large.argmax(dim=0).numpy())
    truth, predicted = np.stack(truths), np.stack(predictions)
    records = {r.metric: r.value for r in evaluate_sizes(stock, data, tasks=["segmentation"])}
    assert records["segmentation_knn_miou"] == pytest.approx(np.mean(numpy_ious(truth, predicted, 4)), abs=2e-3)
    right = (truth == predicted)[truth >= 0].mean()
    assert records["segmentation_knn_accuracy"] == pytest.approx(right, abs=2e-3)


def test_numbers_depend_neither_on_batches_nor_on_other_sizes(tiny_model, data):
    subject = Subject("tiny", tiny_model.teacher, PROCESSOR, step=3)
    together = evaluate_sizes(subject, data, ["16x1", "32x3"], ["segmentation"])
    apart = evaluate_sizes(subject, data, ["16x1", "32x3"], ["segmentation"], batch_size=3, feature_memory_gb=1e-9)
    assert [(r.size, r.metric) for r in together] == [(r.size, r.metric) for r in apart]
    for one, other in zip(together, apart, strict=True):
        assert one.value == pytest.approx(other.value, abs=5e-3)  # only rounding differs, of single pixels


def test_images_of_several_sizes_and_any_dataset(stock):
    mixed = rows(4) + rows(4, width=40, height=60) + rows(4, width=64, height=33)
    data = EvaluationData(DenseImages(mixed[:6], name="test"), DenseImages(mixed[6:]))
    records = evaluate_sizes(stock, data, tasks=["segmentation"], options=TaskOptions(dense_image_size=16))
    assert records[0].settings["image_size"] == 16 and 0 < records[0].value <= 1


def test_classes_that_are_declared_need_no_train_image(stock):
    train, test = rows(6), rows(3, seed=1)
    test[1]["mask"] = np.where(test[1]["mask"] == 3, 5, test[1]["mask"])
    data = EvaluationData(DenseImages(test, name="test"), DenseImages(train))
    with pytest.raises(ValueError, match=r"Row 1 of the test split has a pixel of the class 5, .* --num_classes 6"):
        evaluate_sizes(stock, data, tasks=["segmentation"])
    record = evaluate_sizes(stock, data, tasks=["segmentation"], options=TaskOptions(num_classes=6))[0]
    assert record.details["iou"]["5"] == 0 and "4" not in record.details["iou"]


def spoiled(number: int, **values) -> list[dict]:
    made = rows(6)
    made[number] = made[number] | values
    return made


def jpeg(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "JPEG")
    return file.getvalue()


BROKEN = {
    "size": (
        spoiled(2, mask=np.zeros((16, 24), np.uint8)),
        {},
        "Row 2 of the train split has an image of 48 x 32 pixels, but a mask of 24 x 16",
    ),
    "unknown class": (
        spoiled(3, mask=np.full((32, 48), 99)),
        {"num_classes": 4},
        "Row 3 of the train split has a pixel of the class 99, but classes are numbers from 0 to 3",
    ),
    "negative": (
        spoiled(3, mask=np.full((32, 48), -1)),
        {},
        "Row 3 of the train split has a pixel of the class -1, .*--ignore_index -1",
    ),
    "one class": (
        [row | {"mask": np.full((32, 48), 7)} for row in rows(4)],
        {},
        r"train split hold one class only \(7\)",
    ),
    "all ignored": (
        [row | {"mask": np.full((32, 48), 255)} for row in rows(4)],
        {},
        "All pixels of the train split's masks are to be ignored",
    ),
    "videos": (
        [row | {"image": b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41"} for row in rows(4)],
        {},
        "No image of the train split could be decoded .row 0: it is a video",
    ),
    "jpeg": (
        spoiled(1, mask=jpeg(np.zeros((32, 48), np.uint8))),
        {},
        "Row 1 of the train split is a mask in JPEG, whose compression changes the numbers of classes: store it as PNG",
    ),
    "huge input": (
        rows(4),
        {"dense_image_size": 100_000},
        "would be enlarged to 150000 x 100000 pixels, more than --max_image_pixels .*a smaller --dense_image_size",
    ),
    "no masks in the column": (
        [row | {"mask": "a cat"} for row in rows(4)],
        {},
        "could be decoded .row 0: its mask: .*a cat.*the right column with --image_column or --mask_column, or mend",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_values_that_cannot_be_used_are_named_with_their_row(stock, data, kind):
    train, options, message = BROKEN[kind]
    with pytest.raises(ValueError, match=message) as error:
        evaluate_sizes(
            stock, EvaluationData(data.test, DenseImages(train)), tasks=["segmentation"], options=TaskOptions(**options)
        )
    assert str(error.value).count(". ") == 0 and str(error.value).endswith(".")


def test_rows_that_cannot_be_read_are_left_out(stock, data, caplog):
    train = spoiled(1, mask=np.zeros((32, 48, 3)))
    train[3]["image"] = b"nothing"
    records = evaluate_sizes(stock, EvaluationData(data.test, DenseImages(train)), tasks=["segmentation"])
    assert (records[0].train_images, records[0].skipped_images) == (4, 2)
    assert "Image 1 of the train split could not be decoded and is left out: its mask: an array of shape" in caplog.text


def scores_of(right: np.ndarray, pixels: np.ndarray) -> list[Score]:
    """The scores of the linear classifier on images of one class, by the pixels that it gets right in each."""
    counts = torch.zeros(len(pixels), 2, 2, 3, dtype=torch.float64)
    counts[:, :, 0] = torch.tensor(np.stack([right, right, pixels], axis=1), dtype=torch.float64)[:, None]
    fitted = {"classes": torch.arange(2), "ignored": [], "k": 1, "points": 1, "memory": counts, "learning_rate": 1,
              "held_out_accuracy": 1}  # fmt: skip
    return SEGMENTATION.scores(counts, fitted, "test", TaskOptions())[:2]


def test_intervals_of_pixel_accuracy_are_those_of_a_bootstrap_of_the_ratio():
    """Images of very different sizes count by their pixels, in each resample too."""
    generator = np.random.default_rng(0)
    pixels = generator.choice([100, 900, 40_000], 60)
    right = generator.binomial(pixels, np.clip(generator.normal(0.93, 0.05, 60), 0, 1))
    _, score = scores_of(right, pixels)
    drawn = generator.integers(60, size=(4000, 60))
    ends = np.quantile(right[drawn].sum(axis=1) / pixels[drawn].sum(axis=1), [0.025, 0.975])
    assert score.value == pytest.approx(right.sum() / pixels.sum())
    assert score.interval == pytest.approx(ends, abs=0.12 * (ends[1] - ends[0])) and score.interval[1] < 1
    _, score = scores_of(pixels, pixels)  # if all are right, the images do not tell how many others would be
    assert (score.value, score.interval) == (1, None)


def test_images_of_which_all_pixels_are_ignored_change_nothing():
    """Neither numbers and their intervals nor how sure a difference of two models is."""
    record = Evaluation("run", "-", "segmentation", "any", 0.5, "birds", "test", 5, "2026-11-27")
    found = []
    for ignored in ([], [0, 0]):
        right, pixels = np.array([[50, *ignored, 80, 30], [90, *ignored, 70, 40]]), np.array([100, *ignored, 100, 50])
        both = [scores_of(part, pixels) for part in right]
        measured = [
            [Measurement.of_score(replace(record, metric=score.metric, value=score.value), score) for score in scores]
            for scores in both
        ]
        pair = Side("one", "-"), Side("two", "-")
        paired = [each.paired for each in differences([pair], dict(zip(pair, measured, strict=True)))]
        found.append((both, paired))
    assert found[0] == found[1]
    assert all(0 <= score.interval[0] < score.interval[1] <= 1 for part in found[1][0] for score in part)
    assert [(each.images, 0 < each.p_value < 1) for each in found[1][1]] == [(3, True)] * 2


def test_all_test_pixels_ignored(stock, data):
    test = DenseImages([row | {"mask": np.full((32, 48), 255)} for row in rows(3)], name="test")
    with pytest.raises(ValueError, match="All pixels of the test split's masks are to be ignored"):
        evaluate_sizes(stock, EvaluationData(test, data.train), tasks=["segmentation"])


def test_splits_and_tasks_of_different_kinds_are_refused(stock, data):
    with pytest.raises(ValueError, match="The task knn needs labels"):
        evaluate_sizes(stock, data, tasks=["knn"])
    with pytest.raises(ValueError, match="need a train split"):
        evaluate_sizes(stock, EvaluationData(data.test), tasks=["segmentation"])
    with pytest.raises(ValueError, match="num_classes is 1"):
        evaluate_sizes(stock, data, tasks=["segmentation"], options=TaskOptions(num_classes=1))
