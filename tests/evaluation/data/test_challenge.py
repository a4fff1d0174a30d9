import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.features import class_features
from poa_hf.evaluation.splits import open_splits
from poa_hf.evaluation.statistics.intervals import wilson_interval
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import TaskOptions
from poa_hf.evaluation.tasks.knn import knn_predictions

from ..image_folders import CHALLENGE_CLASSES, challenge_folder, save_texture

PROCESSOR = evaluation_processor(32, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
OPTIONS = TaskOptions(k=(3,))


def opened_images(folder: Path) -> tuple[list[Image.Image], list[int]]:
    paths = sorted(folder.glob("*/*.JPEG"))
    return [Image.open(path) for path in paths], [CHALLENGE_CLASSES.index(path.parent.name) for path in paths]


@pytest.mark.parametrize("train", ["original/train", "train", "in9l/train"])
def test_accuracy_on_each_kind_is_that_of_its_own_images(tiny_model, tmp_path, train):
    root = challenge_folder(tmp_path / "bg_challenge", train)
    data = open_splits(str(root), train_split=train if train.startswith("in9l") else "train")
    assert data.train.name == train and data.test.name == "original/val" and data.holdout is None
    subject = Subject("tiny", tiny_model.teacher, PROCESSOR, step=3)
    records = evaluate_sizes(subject, data, ["32x3"], ["backgrounds", "knn"], OPTIONS, num_workers=1)
    model = tiny_model.teacher.extract("32x3")

    def features(images):
        return class_features(model, [PROCESSOR([i.convert("RGB") for i in images], return_tensors="pt").pixel_values])

    memory, memory_labels = opened_images(root / train)
    memory = features(memory)
    right = {}
    for kind in ("original", "only_fg", "mixed_same", "mixed_rand"):
        images, labels = opened_images(root / kind / "val")
        votes = knn_predictions(memory, torch.tensor(memory_labels), features(images), [3])[3]
        right[kind] = (votes == torch.tensor(labels)).double()
    *of_kinds, gap, knn = records
    assert [record.settings["kind"] for record in of_kinds] == list(right)
    for record in of_kinds:
        expected = right[record.settings["kind"]]
        assert record.value == pytest.approx(expected.mean().item())
        assert record.interval == pytest.approx(wilson_interval(int(expected.sum()), len(expected)))
        assert record.details == {"images": 18, "left_out": 0} and record.settings["images"] == "challenge"
    assert gap.metric == "background_gap"
    assert gap.value == pytest.approx((right["mixed_same"].mean() - right["mixed_rand"].mean()).item())
    assert gap.interval[0] < gap.value < gap.interval[1]
    assert knn.value == of_kinds[0].value and (knn.dataset, knn.train_images) == ("bg_challenge", 18)


def test_without_train_images_nothing_is_tested_that_shows_a_train_image(tmp_path):
    root = challenge_folder(tmp_path / "bg_challenge")
    data = open_splits(str(root))
    assert data.holdout.fraction == 0.5 and len(data.train) == len(data.test) == 9
    memory = {Path(row.name).stem for _, rows in data.train.batches(99) for row in rows}
    assert not memory & {Path(row.name).stem for _, rows in data.test.batches(99) for row in rows}
    for kind, images in data.variants.items():
        tested = [Path(row.name).stem for _, rows in images.batches(99) for row in rows]
        everything = {path.stem for path in (root / kind / "val").glob("*/*.JPEG")}
        assert set(tested) == {stem for stem in everything if not any(part in memory for part in parts(stem))}
    assert len(data.variants["only_fg"]) == 9
    assert len(open_splits(str(root), holdout=0.8).train) == 3


def parts(stem: str) -> list[str]:
    return stem.removeprefix("fg_").split("_bg_")


def test_a_kind_may_lack_classes_and_images_may_be_limited(tmp_path):
    root = challenge_folder(tmp_path / "bg_challenge", "train")
    for path in (root / "mixed_rand" / "val" / CHALLENGE_CLASSES[0]).iterdir():
        path.unlink()
    data = open_splits(str(root))
    labels = [row.label for _, rows in data.variants["mixed_rand"].batches(99) for row in rows]
    assert sorted(set(labels)) == [1, 2] and data.variants["mixed_rand"].class_names == list(CHALLENGE_CLASSES)
    data = open_splits(str(root), max_train_images=10, max_test_images=5)
    assert len(data.train) == 10 and {len(images) for images in (data.test, *data.variants.values())} == {5}


def test_equal_names_in_several_classes(tmp_path):
    root = tmp_path / "bg_challenge"
    for kind in ("original", "no_fg", "mixed_next"):
        for label, folder in enumerate(CHALLENGE_CLASSES):
            for number in range(4):
                save_texture(root / kind / "val" / folder / f"{number}.JPEG", 10 * label + number)
    data = open_splits(str(root))
    tested = {row.name for _, rows in data.test.batches(99) for row in rows}
    for images in data.variants.values():
        assert {row.name for _, rows in images.batches(99) for row in rows} == tested


def test_what_names_do_not_tell(tmp_path, caplog):
    root = challenge_folder(tmp_path / "bg_challenge", kinds=("only_fg", "mixed_rand"))
    for number, path in enumerate(sorted((root / "mixed_rand" / "val").glob("*/*.JPEG"))):
        path.rename(path.with_name(f"{number}.JPEG"))
    with caplog.at_level(logging.WARNING):
        data = open_splits(str(root))
    assert len(data.variants["mixed_rand"]) == 18
    assert "The names in mixed_rand/val do not tell which original images" in caplog.text and len(caplog.records) == 1


def test_folders_that_are_not_as_published(tmp_path, tiny_model):
    root = challenge_folder(tmp_path / "bg_challenge", kinds=("only_fg",))
    with pytest.raises(ValueError, match="has no folder in9l/train of train images: give --train_split a folder"):
        open_splits(str(root), train_split="in9l/train")
    few = challenge_folder(tmp_path / "few", kinds=("mixed_same",))
    kept = sorted((few / "mixed_same" / "val").glob("*/*.JPEG"))
    data = open_splits(str(few))
    memory = {Path(row.name).stem for _, rows in data.train.batches(99) for row in rows}
    for path in kept:
        if not any(part in memory for part in parts(path.stem)):
            path.unlink()
    with pytest.raises(ValueError, match="^All images in mixed_same/val show the foreground or the background of a"):
        open_splits(str(few))
    only = open_splits(str(root))
    subject = Subject("tiny", tiny_model.teacher, PROCESSOR)
    records = evaluate_sizes(subject, only, ["16x1"], ["backgrounds"], OPTIONS)
    assert [record.settings["kind"] for record in records] == ["original", "only_fg"]  # and no gap
    assert np.isfinite([record.value for record in records]).all()
