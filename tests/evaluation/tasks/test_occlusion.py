import numpy as np
import pytest
import torch

from poa_hf.evaluation.alterations.alteration import ModelInput, PixelBatch, random_of
from poa_hf.evaluation.tasks import TaskOptions, alterations_of, check_tasks
from poa_hf.evaluation.tasks.occlusion import DROPPED, Occlusion

HASHES = [b"first", b"second", b"third"]


def batch(channels=3, height=32, width=32, saliency=None) -> PixelBatch:
    pixels = 1 + torch.rand(len(HASHES), channels, height, width, generator=torch.Generator().manual_seed(0))
    return PixelBatch(pixels, HASHES, (lambda images: saliency) if saliency is not None else None)


def naive(pixels: np.ndarray, grid: int, dropped: list[int]) -> np.ndarray:
    """Patch by patch: row r and column c of the grid are the pixels that fall to them."""
    result = pixels.copy()
    height, width = pixels.shape[1:]
    for patch in dropped:
        row, column = divmod(patch, grid)
        for y in range(height):
            for x in range(width):
                if y * grid // height == row and x * grid // width == column:
                    result[:, y, x] = 0
    return result


@pytest.mark.parametrize(
    ("channels", "height", "width", "grid", "ratio"),
    [(3, 32, 32, 8, 0.5), (1, 28, 28, 14, 0.1), (5, 33, 20, 7, 0.75), (3, 16, 16, 2, 0.9), (3, 16, 16, 2, 0.01)],
)
def test_random_patches_are_dropped_as_a_loop_drops_them(channels, height, width, grid, ratio):
    images = batch(channels, height, width)
    before = images.pixel_values.clone()
    altered = Occlusion("random", ratio, grid, seed=3).alter(images)
    number = min(max(round(ratio * grid**2), 1), grid**2 - 1)
    for image, pixels, image_hash in zip(altered, before, HASHES, strict=True):
        dropped = random_of(image_hash, 3, "occlusion").permutation(grid**2)[:number].tolist()
        assert np.array_equal(image.numpy(), naive(pixels.numpy(), grid, dropped))
    assert torch.equal(images.pixel_values, before)


def test_salient_patches_are_the_most_and_non_salient_the_least_salient_ones():
    saliency = torch.rand(len(HASHES), 4, 4, generator=torch.Generator().manual_seed(1))
    images = batch(saliency=saliency)
    for dropped in ("salient", "non-salient"):
        altered = Occlusion(dropped, 0.25, 4).alter(images)
        for image, pixels, weights in zip(altered, images.pixel_values, saliency, strict=True):
            order = sorted(range(16), key=lambda patch: weights.flatten()[patch], reverse=dropped == "salient")  # noqa: B023
            assert np.array_equal(image.numpy(), naive(pixels.numpy(), 4, order[:4]))


def test_saliency_of_another_grid_is_averaged_or_interpolated():
    fine = torch.zeros(len(HASHES), 8, 8)
    fine[:, 2:4, 6:8] = 1  # patch 1, 3 of a grid of 4
    coarse = torch.zeros(len(HASHES), 2, 2)
    coarse[:, 1, 0] = 1
    for saliency, patch in ((fine, 7), (coarse, 12)):
        images = batch(saliency=saliency)
        altered = Occlusion("salient", 1 / 16, 4).alter(images)
        for image, pixels in zip(altered, images.pixel_values, strict=True):
            assert np.array_equal(image.numpy(), naive(pixels.numpy(), 4, [patch]))


def test_a_larger_share_drops_the_same_patches_and_more_whatever_the_batch():
    images = batch(saliency=torch.rand(len(HASHES), 8, 8))
    for dropped in DROPPED:
        hidden = [Occlusion(dropped, ratio, 8).alter(images) == 0 for ratio in (0.2, 0.5, 0.9)]
        assert (hidden[0] <= hidden[1]).all() and (hidden[1] <= hidden[2]).all()
        assert [part[:, 0].double().mean().item() for part in hidden] == [13 / 64, 0.5, 58 / 64]
    alone = PixelBatch(images.pixel_values[1:2], HASHES[1:2], None)
    whole = Occlusion("random", 0.5, 8).alter(images)
    assert torch.equal(Occlusion("random", 0.5, 8).alter(alone), whole[1:2])
    assert not torch.equal(Occlusion("random", 0.5, 8, seed=1).alter(images), whole)


@pytest.mark.parametrize(
    ("images", "grid"),
    [
        ((224, 224, 16), 14), ((224, 224, 14), 16), ((32, 32, 8), 4), ((518, 518, 14), 37),  # a ViT's own patches
        ((224, 224), 14), ((32, 32), 8), ((96, 96), 12), ((97, 97), 14), ((28, 42), 14), ((518, 518), 14),
        ((224, 112, 16), 14), ((100, 100, 16), 10), ((32, 32, 32), 8),  # not a square grid of whole patches
    ],
)  # fmt: skip
def test_the_usual_grid_is_that_of_the_model_or_divides_the_sides(images, grid):
    alterations = alterations_of(["occlusion"], TaskOptions(), ModelInput(*images))
    assert {alteration.grid for alteration in alterations} == {grid}
    assert len(alterations) == 3 * 4  # kinds x shares


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="^Images of 11 x 13 pixels are smaller than a grid of 14 x 14 patches"):
        alterations_of(["occlusion"], TaskOptions(), ModelInput(11, 13))
    with pytest.raises(ValueError, match="grid of 40 x 40 patches: give --occlusion_grid a smaller number.$"):
        alterations_of(["occlusion"], TaskOptions(occlusion_grid=40), ModelInput(32, 64))
    for options, message in (
        ({"occlusion_ratios": (0.5, 1.0)}, "^occlusion_ratios is .0.5, 1.0.: give numbers above 0 and below 1.$"),
        ({"occlusion_ratios": ()}, "^occlusion_ratios is"),
        ({"occlusion_grid": 1}, "^occlusion_grid is 1: give a whole number of at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            check_tasks(["occlusion"], TaskOptions(**options), None)
    with pytest.raises(ValueError, match="only 5 images: give k-NN a smaller number with --k"):
        check_tasks(["occlusion"], TaskOptions(), 5)
