"""Which patches of the global views are hidden: unions of random blocks, as in DINOv2 and iBOT."""

import numpy as np

MIN_BLOCK_PATCHES = 4
MIN_ASPECT_RATIO = 0.3
BLOCK_ATTEMPTS = 10  # attempts at one block before the mask is left as it is


def block_masks(
    count: int,
    grid: tuple[int, int],
    rng: np.random.Generator,
    ratio: tuple[float, float] = (0.1, 0.5),
    probability: float = 0.5,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Draw masks for `count` views on a grid of (height, width) patches: bool (count, height * width), True is masked.

    `round(count * probability)` views, chosen at random, are masked. The i-th of them hides a share drawn from the i-th
    of that many equal parts of `ratio`, so the shares of a batch are spread evenly, and never more than that share.
    A mask is a union of blocks of at least 4 patches, with a log-uniform aspect ratio between 0.3 and 1/0.3.

    `rows` (indices of views) limits work and result to these views; their masks are the same as among all.

    The statistics are those of DINOv2's `MaskingGenerator` and of how its collate function calls it.
    """
    height, width = grid
    rows = np.arange(count) if rows is None else np.asarray(rows)
    num_masked = round(count * probability)
    edges = np.linspace(ratio[0], ratio[1], num_masked + 1)
    targets = np.zeros(count, dtype=np.int64)
    targets[:num_masked] = (height * width * rng.uniform(edges[:-1], edges[1:])).astype(np.int64)
    target = rng.permutation(targets)[rows]
    spare = rng.integers(height * width, size=count)[rows]

    masks = np.zeros((len(rows), height, width), dtype=bool)
    active = np.flatnonzero(target > 0)
    masked = np.zeros(len(rows), dtype=np.int64)
    failures = np.zeros(len(rows), dtype=np.int64)
    while len(active):
        # drawn for all views, so that a view's mask does not depend on which others are computed
        area_u, aspect_u, top_u, left_u = rng.random((4, count))[:, rows[active]]
        left_over = target[active] - masked[active]
        # DINOv2's bounds, which change places when fewer than 4 patches are left over
        area = MIN_BLOCK_PATCHES + (np.minimum(left_over, height * width // 2) - MIN_BLOCK_PATCHES) * area_u
        aspect = np.exp(np.log(MIN_ASPECT_RATIO) * (1 - 2 * aspect_u))
        h, w = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        top, left = np.floor(top_u * (height - h + 1)), np.floor(left_u * (width - w + 1))

        y, x = np.arange(height), np.arange(width)
        in_rows = (y >= top[:, None]) & (y < (top + h)[:, None])
        in_columns = (x >= left[:, None]) & (x < (left + w)[:, None])
        new = in_rows[:, :, None] & in_columns[:, None, :] & ~masks[active]
        added = new.sum(axis=(1, 2))
        accepted = (h < height) & (w < width) & (added > 0) & (added <= left_over)

        masks[active[accepted]] |= new[accepted]
        masked[active[accepted]] += added[accepted]
        failures[active] = np.where(accepted, 0, failures[active] + 1)
        active = active[(masked[active] < target[active]) & (failures[active] < BLOCK_ATTEMPTS)]

    # On tiny grids all attempts may fail: a view that is to be masked always hides at least one patch.
    empty = np.flatnonzero((target > 0) & (masked == 0))
    masks = masks.reshape(len(rows), height * width)
    masks[empty, spare[empty]] = True
    return masks
