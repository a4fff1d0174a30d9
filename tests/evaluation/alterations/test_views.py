import numpy as np
from PIL import Image

from poa_hf.data.crops import draw_boxes
from poa_hf.evaluation.alterations.alteration import random_of
from poa_hf.evaluation.alterations.views import TrainingView
from poa_hf.evaluation.labelled import LabelledRow

ROW = LabelledRow("0", None, 0)


def image(width: int = 90, height: int = 60) -> Image.Image:
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return Image.fromarray((ramp * np.random.default_rng(0).uniform(0.9, 1, ramp.shape)).astype(np.uint8))


def test_a_view_is_a_part_of_the_image_as_pillow_resizes_it():
    flips = 0
    for number in range(40):
        view = TrainingView(number, 32, 24).alter(image(), ROW, b"hash")
        assert view.size == (24, 32) and view.mode == "RGB"
        random = random_of(b"hash", 0, f"training view {number}")
        [(left, top, right, bottom)] = draw_boxes(random, 90, 60, np.array([0.08]), np.array([1.0])).tolist()
        assert 0.07 < (right - left) * (bottom - top) / 5400 <= 1
        flip = random.random() < 0.5
        flips += flip
        part = image().crop((left, top, right, bottom)).resize((24, 32), Image.Resampling.BICUBIC)
        expected = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else part
        assert np.abs(np.asarray(view).astype(int) - np.asarray(expected)).max() <= 2
    assert 10 < flips < 30


def test_a_view_depends_on_its_number_the_seed_and_the_image_only():
    def pixels(number=0, seed=0, content=b"a"):
        return np.asarray(TrainingView(number, 16, 16, seed).alter(image(), ROW, content)).tobytes()

    assert pixels() == pixels()
    assert len({pixels(), pixels(number=1), pixels(seed=1), pixels(content=b"b")}) == 4


def test_images_of_any_channels_keep_their_form():
    grey = image().convert("L")
    assert TrainingView(0, 16, 16).alter(grey, ROW, b"a").mode == "L"
    array = np.random.default_rng(0).integers(256, size=(40, 50, 5), dtype=np.uint8)
    before = array.copy()
    assert TrainingView(0, 16, 20).alter(array, ROW, b"a").shape == (16, 20, 5)
    assert (array == before).all()
