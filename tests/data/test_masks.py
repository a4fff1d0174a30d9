"""Mask statistics are those of the published generator, which a naive loop restates here."""

import math
import random

import numpy as np
import pytest

from poa_hf.data.masks import block_masks


def naive_mask(rng: random.Random, height: int, width: int, target: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=bool)
    count = 0
    while count < target:
        largest = min(target - count, height * width // 2)
        added = 0
        for _ in range(10):
            area = rng.uniform(4, largest)
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w < width and h < height:
                top, left = rng.randint(0, height - h), rng.randint(0, width - w)
                new = h * w - int(mask[top : top + h, left : left + w].sum())
                if 0 < new <= largest:
                    mask[top : top + h, left : left + w] = True
                    added = new
                    break
        if added == 0:
            break
        count += added
    if target and not count:  # ours: never an empty mask
        mask[rng.randrange(height), rng.randrange(width)] = True
    return mask.ravel()


def naive_masks(rng: random.Random, count: int, height: int, width: int, ratio, probability: float) -> np.ndarray:
    masked = round(count * probability)
    edges = np.linspace(*ratio, masked + 1)
    pairs = zip(edges[:-1], edges[1:], strict=True)
    masks = [naive_mask(rng, height, width, int(height * width * rng.uniform(a, b))) for a, b in pairs]
    masks += [np.zeros(height * width, dtype=bool)] * (count - masked)
    rng.shuffle(masks)
    return np.stack(masks)


def neighbours_alike(masks: np.ndarray, grid: tuple[int, int]) -> float:
    """Share of horizontally adjacent patches that are both masked or both not: how blocky the masks are."""
    masks = masks.reshape(-1, *grid)
    return float((masks[:, :, 1:] == masks[:, :, :-1]).mean())


@pytest.mark.parametrize(
    ("grid", "ratio", "probability"),
    [((14, 14), (0.1, 0.5), 0.5), ((8, 8), (0.1, 0.3), 1.0), ((4, 4), (0.1, 0.5), 0.5), ((6, 10), (0.2, 0.7), 0.75)],
)
def test_statistics_of_the_naive_loop(grid, ratio, probability):
    rng, naive_rng, views = np.random.default_rng(0), random.Random(0), 32
    ours = np.stack([block_masks(views, grid, rng, ratio, probability) for _ in range(60)])
    naive = np.stack([naive_masks(naive_rng, views, *grid, ratio, probability) for _ in range(60)])
    ours_sorted, naive_sorted = (np.sort(m.mean(axis=2), axis=1).mean(axis=0) for m in (ours, naive))
    np.testing.assert_allclose(ours_sorted, naive_sorted, atol=0.012)
    assert neighbours_alike(ours, grid) == pytest.approx(neighbours_alike(naive, grid), abs=0.01)
    # where the blocks lie: the middle is masked more often than corners
    np.testing.assert_allclose(ours.mean(axis=(0, 1)), naive.mean(axis=(0, 1)), atol=0.05)


def test_shares_are_spread_and_never_exceeded():
    masks = block_masks(200, (14, 14), np.random.default_rng(1))
    counts = masks.sum(axis=1)
    assert masks.shape == (200, 196) and masks.dtype == bool
    assert (counts > 0).sum() == 100
    upper = np.linspace(0.1, 0.5, 101)[1:] * 196
    assert (np.sort(counts[counts > 0]) <= upper).all()
    assert counts.sum() / 100 == pytest.approx(0.3 * 196, abs=4)
    assert not np.array_equal(counts, np.sort(counts))  # shuffled among the views


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 3), (4, 4), (1, 9), (2, 7)])
def test_tiny_grids_hide_something_and_not_too_much(grid):
    patches = grid[0] * grid[1]
    for seed in range(50):
        masks = block_masks(8, grid, np.random.default_rng(seed), (0.5, 1.0), 1.0)
        assert (masks.sum(axis=1) >= min(1, patches // 2)).all()
        assert (np.sort(masks.sum(axis=1)) <= np.linspace(0.5, 1, 9)[1:] * patches).all()
    one = block_masks(16, (4, 4), np.random.default_rng(0), (1 / 16, 1.99 / 16), 1.0)
    assert (one.sum(axis=1) == 1).all()


def test_rows_are_rows_of_the_whole():
    whole = block_masks(64, (8, 8), np.random.default_rng(3))
    for rows in ([0], [5, 63, 2], list(range(20, 40))):
        assert np.array_equal(block_masks(64, (8, 8), np.random.default_rng(3), rows=np.array(rows)), whole[rows])


def test_no_views_and_no_masks():
    rng = np.random.default_rng(0)
    assert block_masks(0, (4, 4), rng).shape == (0, 16)
    assert not block_masks(5, (4, 4), rng, probability=0.0).any()
    assert not block_masks(5, (4, 4), rng, ratio=(0.0, 0.0)).any()
    assert (block_masks(2, (4, 4), rng).any(axis=1)).sum() == 1
