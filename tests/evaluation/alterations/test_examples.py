import numpy as np
import pytest
from PIL import Image

from poa_hf.data.processor import evaluation_processor, resized_images
from poa_hf.evaluation.alterations.alteration import random_of
from poa_hf.evaluation.alterations.backgrounds import only_foreground
from poa_hf.evaluation.alterations.corruptions import corrupted
from poa_hf.evaluation.alterations.examples import LABEL, MARGIN, examples_picture, save_examples
from poa_hf.evaluation.data.coinciding import identify
from poa_hf.evaluation.data.masked import MaskedImages
from poa_hf.evaluation.labelled import LabelledImages
from poa_hf.evaluation.splits import EvaluationData, open_splits
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import TaskOptions

from ..image_folders import challenge_folder, masked_table, table

PROCESSOR = evaluation_processor(32, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def cell(picture: Image.Image, row: int, column: int) -> np.ndarray:
    """One image of a picture, which is enlarged to twice its 32 pixels."""
    left, top = LABEL + column * (64 + MARGIN), MARGIN + row * (64 + MARGIN)
    return np.asarray(picture)[top : top + 64 : 2, left : left + 64 : 2]


def test_every_row_shows_what_the_model_sees(tiny_model, tmp_path):
    source = masked_table(20, classes=3)
    subject = Subject("tiny", tiny_model.teacher, PROCESSOR)
    data = EvaluationData(MaskedImages(source), LabelledImages(table(30)))
    options = TaskOptions(k=(5,), corruptions=("jpeg",), corruption_strengths=(5,), shuffle_grids=(2,))
    picture = examples_picture(subject, data, ["knn", "corruptions", "backgrounds", "shuffle"], options, number=3)
    assert picture.size == (LABEL + 3 * (64 + MARGIN), MARGIN + 7 * (64 + MARGIN))
    stored = source.cast_column("image", type(source.features["image"])(decode=False))
    seen = resized_images(PROCESSOR, source["image"][:3])
    for column in range(3):
        original = np.asarray(seen[column])
        assert np.array_equal(cell(picture, 0, column), original)
        content = identify(stored[column]["image"], "", source["image"][column]).hash
        expected = corrupted(seen[column], "jpeg", 5, random_of(content, 0, "jpeg"))
        assert np.array_equal(cell(picture, 1, column), np.asarray(expected))
        foreground = only_foreground(source["image"][column], np.asarray(source["mask"][column]) > 0)
        assert np.array_equal(cell(picture, 2, column), np.asarray(resized_images(PROCESSOR, [foreground])[0]))
        shuffled = cell(picture, 6, column)
        parts = [part.tobytes() for half in np.split(shuffled, 2) for part in np.split(half, 2, axis=1)]
        originals = [part.tobytes() for half in np.split(original, 2) for part in np.split(half, 2, axis=1)]
        assert sorted(parts) == sorted(originals)
    save_examples(tmp_path / "examples.png", subject, [(["shuffle"], data)], options)
    assert Image.open(tmp_path / "examples.png").size[1] == MARGIN + 2 * (64 + MARGIN)


def test_kinds_of_the_challenge(tiny_model, tmp_path):
    data = open_splits(str(challenge_folder(tmp_path / "bg_challenge")))
    picture = examples_picture(Subject("tiny", tiny_model.teacher, PROCESSOR), data, ["backgrounds"])
    assert picture.size[1] == MARGIN + 4 * (64 + MARGIN)


@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_any_channels(channels):
    from transformers import Dinov2Config, Dinov2Model

    model = Dinov2Model(
        Dinov2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8,
            num_channels=channels,
        )
    )  # fmt: skip
    subject = Subject("tiny", model, evaluation_processor(32, [0.5] * channels, [0.25] * channels))
    rng = np.random.default_rng(0)
    shape = (40, 40) if channels == 1 else (40, 40, channels)
    images = [{"image": rng.integers(0, 256, shape, dtype=np.uint8), "label": label % 2} for label in range(4)]
    data = EvaluationData(LabelledImages(images), None)
    picture = examples_picture(subject, data, ["corruptions"], TaskOptions(corruption_strengths=(3,)))
    shown = cell(picture, 0, 0)
    pixels = np.asarray(resized_images(subject.processor, [images[0]["image"] if channels > 1 else
                                                           Image.fromarray(images[0]["image"])])[0])  # fmt: skip
    assert np.array_equal(shown, pixels[..., :3] if channels > 1 else np.stack([pixels] * 3, axis=-1))


def test_nothing_is_altered(tiny_model):
    subject = Subject("tiny", tiny_model.teacher, PROCESSOR)
    data = EvaluationData(LabelledImages(table(9)), LabelledImages(table(9)))
    with pytest.raises(ValueError, match="^None of the tasks knn, linear alters images"):
        examples_picture(subject, data, ["knn", "linear"])
