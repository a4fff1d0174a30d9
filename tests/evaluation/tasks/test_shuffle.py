import numpy as np
import pytest
import torch

from poa_hf.evaluation.alterations.alteration import ModelInput, PixelBatch, random_of
from poa_hf.evaluation.tasks import TaskOptions, alterations_of, check_tasks
from poa_hf.evaluation.tasks.shuffle import Shuffle

HASHES = [b"first", b"second"]


def naive(pixels: np.ndarray, grid: int, order: list[int]) -> np.ndarray:
    """Patch by patch: to place i goes the patch that lay at place order[i]."""
    result = np.empty_like(pixels)
    height, width = pixels.shape[1] // grid, pixels.shape[2] // grid
    for place, patch in enumerate(order):
        (row, column), (from_row, from_column) = divmod(place, grid), divmod(patch, grid)
        result[:, row * height : (row + 1) * height, column * width : (column + 1) * width] = pixels[
            :, from_row * height : (from_row + 1) * height, from_column * width : (from_column + 1) * width
        ]
    return result


@pytest.mark.parametrize(
    ("channels", "height", "width", "grid"), [(3, 32, 32, 8), (1, 28, 28, 14), (5, 33, 22, 11), (3, 16, 8, 2)]
)
def test_patches_are_shuffled_as_a_loop_shuffles_them(channels, height, width, grid):
    pixels = torch.rand(len(HASHES), channels, height, width, generator=torch.Generator().manual_seed(0))
    before = pixels.clone()
    altered = Shuffle(grid, seed=3).alter(PixelBatch(pixels, HASHES, None))
    for image, original, image_hash in zip(altered, before, HASHES, strict=True):
        order = random_of(image_hash, 3, f"shuffle {grid}").permutation(grid**2).tolist()
        assert np.array_equal(image.numpy(), naive(original.numpy(), grid, order))
    assert torch.equal(pixels, before)
    alone = Shuffle(grid, seed=3).alter(PixelBatch(pixels[1:], HASHES[1:], None))
    assert torch.equal(alone, altered[1:])


@pytest.mark.parametrize(
    ("size", "grids"),
    [
        *(((224, 224), [2, 4, 8, 14]), ((32, 32), [2, 4, 8]), ((518, 518), [2, 14]), ((98, 28), [2, 14])),
        *(((33, 66), [3, 11]), ((15, 45), [3, 5])),
    ],
)
def test_the_usual_grids_are_those_that_divide_the_sides(size, grids):
    assert alterations_of(["shuffle"], TaskOptions(), ModelInput(*size)) == [Shuffle(grid) for grid in grids]


def test_grids_that_do_not_fit_are_refused():
    for side in (37, 34):
        with pytest.raises(ValueError, match=f"^No grid of 2 to 14 patches per side divides images of {side} x 37 pix"):
            alterations_of(["shuffle"], TaskOptions(), ModelInput(side, 37))
    with pytest.raises(ValueError, match="^A grid of 5 x 5 patches does not divide images of 32 x 32 pixels: give --s"):
        alterations_of(["shuffle"], TaskOptions(shuffle_grids=(2, 5)), ModelInput(32, 32))
    with pytest.raises(ValueError, match="^Images of 32 x 32 pixels are smaller than a grid of 64 x 64 patches: give"):
        alterations_of(["shuffle"], TaskOptions(shuffle_grids=(64,)), ModelInput(32, 32))
    for grids in ((), (1,), (2, 0)):
        with pytest.raises(ValueError, match="^shuffle_grids is"):
            check_tasks(["shuffle"], TaskOptions(shuffle_grids=grids), None)
