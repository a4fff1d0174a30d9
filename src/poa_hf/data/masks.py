"""Masks of the global views' patches: unions of random blocks, as in DINOv2 and iBOT.

`batches` draws them with the crops; the students do not see the masked patches and predict them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MIN_BLOCK_PATCHES = 4
MIN_ASPECT_RATIO = 0.3
BLOCK_ATTEMPTS = 10  # attempts at one block before the mask is left as it is


def block_masks(
    count: int,
    grid: tuple[int, int],
    rng: np.random.Generator,
    ratio: Sequence[float] = (0.1, 0.5),
    probability: float = 0.5,
    rows: np.ndarray | None = None,
) -> np.ndarray:
    """Draw the masks of a batch of views.

    `round(count * probability)` views, chosen at random, are masked. `ratio` is divided into as many equal parts, and
    the i-th of these views hides at most a share drawn from the i-th part, so that the shares are spread evenly over a
    batch. A mask is a union of blocks of at least 4 patches, with a log-uniform aspect ratio between 0.3 and 1/0.3.
    The statistics are those of DINOv2's `MaskingGenerator` and of its collate function.

    Args:
        count: Number of views.
        grid: Height and width of a view in patches.
        rng: The batch's generator.
        ratio: Smallest and largest share of the patches that a masked view hides.
        probability: Share of the views that are masked.
        rows: Indices (n,) of views to which work and result are limited; their masks are the same as among all views.

    Returns:
        bool (count, height * width), or (n, height * width) with `rows`; True where a patch is masked.

    Example:
        >>> masks = block_masks(4, (8, 8), np.random.default_rng(0), ratio=(0.25, 0.5))
        >>> masks.shape, int((masks.sum(axis=1) > 0).sum())
        ((4, 64), 2)
    """
    height, width = grid
    rows = np.arange(count) if rows is None else np.asarray(rows)
    num_masked = round(count * probability)
    edges = np.linspace(ratio[0], ratio[1], num_masked + 1)
    targets = np.zeros(count, dtype=np.int64)
    targets[:num_masked] = (height * width * rng.uniform(edges[:-1], edges[1:])).astype(np.int64)
    target = rng.permutation(targets)[rows]
    spare = rng.integers(height * width, size=count)[rows]

    masks = np.zeros((len(rows), height, width), dtype=bool)  # (n, height, width)
    active = np.flatnonzero(target > 0)
    masked = np.zeros(len(rows), dtype=np.int64)
    failures = np.zeros(len(rows), dtype=np.int64)
    while len(active):
        # drawn for all views, so that a view's mask does not depend on which others are computed; each (active,)
        area_u, aspect_u, top_u, left_u = rng.random((4, count))[:, rows[active]]
        left_over = target[active] - masked[active]
        # DINOv2's bounds, the lower of which is the larger one when fewer than 4 patches are left over
        area = MIN_BLOCK_PATCHES + (np.minimum(left_over, height * width // 2) - MIN_BLOCK_PATCHES) * area_u
        aspect = np.exp(np.log(MIN_ASPECT_RATIO) * (1 - 2 * aspect_u))
        h, w = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
        top, left = np.floor(top_u * (height - h + 1)), np.floor(left_u * (width - w + 1))

        y, x = np.arange(height), np.arange(width)
        in_rows = (y >= top[:, None]) & (y < (top + h)[:, None])
        in_columns = (x >= left[:, None]) & (x < (left + w)[:, None])
        new = in_rows[:, :, None] & in_columns[:, None, :] & ~masks[active]  # (active, height, width)
        added = new.sum(axis=(1, 2))
        accepted = (h < height) & (w < width) & (added > 0) & (added <= left_over)

        masks[active[accepted]] |= new[accepted]
        masked[active[accepted]] += added[accepted]
        failures[active] = np.where(accepted, 0, failures[active] + 1)
        active = active[(masked[active] < target[active]) & (failures[active] < BLOCK_ATTEMPTS)]

    # On tiny grids all attempts may fail: a view that is to be masked always hides at least one patch.
    empty = np.flatnonzero((target > 0) & (masked == 0))
    flat = masks.reshape(len(rows), height * width)  # (n, patches)
    flat[empty, spare[empty]] = True
    return flat
