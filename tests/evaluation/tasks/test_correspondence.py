import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetModel

from poa_hf.data.processor import evaluation_processor
from poa_hf.data.textures import TextureDataset
from poa_hf.evaluation.dense.images import DenseImages
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.splits import EvaluationData
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import TaskOptions
from poa_hf.evaluation.tasks.correspondence import (
    CORRESPONDENCE,
    CorrespondenceOptions,
    patch_centres,
    places_in_view,
    random_affine,
)

OPTIONS = CorrespondenceOptions(correspondence_pixels=(2, 6))


@pytest.mark.parametrize("seed", range(6))
def test_views_show_where_their_map_says(seed):
    """A bright dot of the image is found in the view at the place that the map gives."""
    generator = torch.Generator().manual_seed(seed)
    image = np.zeros((96, 128), dtype=np.uint8)
    matrix = None
    for y, x in ((40, 60), (50, 70), (30, 75)):
        dot = image.copy()
        dot[y - 1 : y + 2, x - 1 : x + 2] = 255
        view, matrix = CORRESPONDENCE.view(Image.fromarray(dot), generator.manual_seed(seed), OPTIONS)
        values = np.asarray(view).astype(float)
        place = places_in_view(torch.tensor([[x + 0.5, y + 0.5]], dtype=torch.float64), matrix)[0].numpy()
        if not (4 < place[0] < 124 and 4 < place[1] < 92):
            continue
        rows, columns = np.mgrid[:96, :128] + 0.5
        centre = (values * columns).sum() / values.sum(), (values * rows).sum() / values.sum()
        np.testing.assert_allclose(centre, place, atol=0.4)


def test_views_lie_within_the_image_and_half_are_mirrored():
    generator = torch.Generator().manual_seed(0)
    matrices = [random_affine(128, 96, generator) for _ in range(200)]
    corners = np.array([[0, 0, 1], [128, 0, 1], [0, 96, 1], [128, 96, 1]])
    for matrix in matrices:
        places = corners @ matrix.T
        assert (places >= -1e-9).all() and (places <= np.array([128, 96]) + 1e-9).all()
    areas = np.array([np.linalg.det(matrix[:, :2]) for matrix in matrices])
    assert 0.35 < (areas < 0).mean() < 0.65 and 0.3 < np.sqrt(abs(areas)).min() < np.sqrt(abs(areas)).max() <= 0.9


def test_patches_that_know_their_place_are_found_as_well_as_the_grid_allows():
    """Features that are their patch's place in the image, against a search in NumPy."""
    matrix = random_affine(64, 48, torch.Generator().manual_seed(3))

    class Example:
        pixel_values = torch.zeros(3, 48, 64)
        geometry = {"correspondence": matrix}

    def features(places: np.ndarray) -> torch.Tensor:
        # on a sphere, where the nearest in angle is the nearest in space for places that lie close together
        flat = np.concatenate([places / 1e4, np.ones((len(places), 1))], axis=1)
        return torch.from_numpy(flat / np.linalg.norm(flat, axis=1, keepdims=True)).view(6, 8, 3)

    centres = patch_centres(6, 8, 48, 64).numpy()
    in_image = centres @ matrix[:, :2].T + matrix[:, 2]  # of the view's patches
    found = CORRESPONDENCE.measure({}, features(centres), features(in_image), Example, OPTIONS).numpy()
    places = np.linalg.solve(matrix[:, :2], (centres - matrix[:, 2]).T).T
    seen = ((places >= 0) & (places < [64, 48])).all(axis=1)
    distances = np.sqrt(((places[seen, None] - centres[None]) ** 2).sum(axis=2)).min(axis=1)
    wanted = [(distances <= pixels).mean() for pixels in (2, 6)]
    np.testing.assert_allclose(found[1], wanted)
    np.testing.assert_allclose(found[0], wanted, atol=0.05)


def test_images_without_labels_are_enough_for_any_family(tiny_model):
    dataset = [TextureDataset(seed=5)[number]["image"] for number in range(8)]
    data = EvaluationData(DenseImages(dataset, [], name="test"), name="textures")
    options = TaskOptions(correspondence_pixels=(4, 16, 4))
    subject = Subject("tiny", tiny_model.teacher, evaluation_processor(32))
    records = evaluate_sizes(subject, data, ["16x1", "32x3"], ["correspondence"], options)
    assert [(r.size, r.settings["within"]) for r in records] == [
        ("16x1", 4), ("16x1", 16), ("32x3", 4), ("32x3", 16)
    ]  # fmt: skip
    assert all(0 <= r.value <= r.details["best_possible"] and r.train_images is None for r in records)
    again = evaluate_sizes(subject, data, ["32x3"], ["correspondence"], options, batch_size=3)
    assert [r.value for r in again] == pytest.approx([r.value for r in records[2:]], abs=0.02)
    torch.manual_seed(0)
    maps = ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1]))
    (record,) = evaluate_sizes(
        Subject("maps", maps, evaluation_processor(64)), data, tasks=["correspondence"],
        options=TaskOptions(correspondence_pixels=(32,)),
    )  # fmt: skip
    assert 0 <= record.value <= 1 and record.settings["image_size"] == 64


def test_pixels_that_are_no_distances():
    with pytest.raises(ValueError, match=r"correspondence_pixels is \[0\]"):
        CORRESPONDENCE.check(CorrespondenceOptions(correspondence_pixels=(0,)), None)
