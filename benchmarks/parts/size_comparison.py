"""What sizes of one run and sizes trained alone are worth on the same test images, kept beside each run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from poa_hf.evaluation.evaluator import measure_sizes
from poa_hf.evaluation.splits import EvaluationData
from poa_hf.evaluation.statistics.paired import paired_difference
from poa_hf.evaluation.subject import Subject, load_subject
from poa_hf.evaluation.tasks import TaskOptions

TASKS = ("knn", "linear")
# Of each test image, (N,), by "TASK SIZE"; of a run of which only the accuracy is kept, ().
Outcomes = dict[str, np.ndarray]


def outcomes(
    path: Path, subject: Callable[[], Subject], data: EvaluationData, sizes: Sequence[str], tasks: Sequence[str] = TASKS
) -> Outcomes:
    """Return which test images are classified correctly, measured once and kept in a file.

    Args:
        path: The file, a `.npz`.
        subject: Loads the model. It is not called if the file exists.
        data: The train and the test images.
        sizes: Sizes of the model.
        tasks: How they are measured.
    """
    if not path.exists():
        options = TaskOptions(k=(20,))
        found, _ = measure_sizes(subject(), data, sizes, tasks, options, batch_size=256, quiet=True)
        new = path.with_name(f"new-{path.name}")
        np.savez_compressed(new, **{f"{m.record.task} {m.record.size}": m.outcomes.numpy() for m in found})
        new.replace(path)
    with np.load(path) as kept:
        return dict(kept)


def curve(folder: Path, data: EvaluationData, sizes: Sequence[str]) -> dict[int, dict[str, float]]:
    """Return k-NN accuracies of a run's checkpoints by step and size, measured once."""
    path = folder / "curve.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    for checkpoint in folder.glob("checkpoint-*"):
        step = checkpoint.name.rpartition("-")[2]
        if step not in kept:
            found, _ = measure_sizes(
                load_subject(checkpoint), data, sizes, ["knn"], TaskOptions(k=(20,)), batch_size=256, quiet=True
            )
            kept[step] = {m.record.size: m.record.value for m in found}
            path.write_text(json.dumps(kept) + "\n")
    return {int(step): kept[step] for step in sorted(kept, key=int)}


def differences(first: Sequence[Outcomes], second: Sequence[Outcomes], size: str) -> dict[str, Any]:
    """Return how much better one model of a size is than another, over the seeds, by task.

    Args:
        first: Outcomes of one model, by seed.
        second: Outcomes of the other, by the same seeds.
        size: The size.

    Returns:
        By task: both accuracies of each seed, the mean difference, and its 95 % interval for other test images and,
        with several seeds, other seeds; in points.
    """
    found = {}
    for task in TASKS:
        a, b = ([each[f"{task} {size}"] for each in side] for side in (first, second))
        seeds = [(float(one.mean()), float(other.mean())) for one, other in zip(a, b, strict=True)]
        interval = _interval(a, b)
        found[task] = {
            "first": [100 * one for one, _ in seeds],
            "second": [100 * other for _, other in seeds],
            "difference": 100 * float(np.mean([one - other for one, other in seeds])),
            "interval": None if interval is None else [100 * bound for bound in interval],
        }
    return found


def _interval(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean difference of outcomes by seed."""
    of_images = [a - b for a, b in zip(first, second, strict=True) if a.ndim and b.ndim]  # (N,) each
    if len(of_images) == len(first):
        a, b = np.stack(first, axis=-1), np.stack(second, axis=-1)
        return (paired_difference(a, b) if len(first) > 1 else paired_difference(a[:, 0], b[:, 0])).interval
    differences = np.array([a.mean() - b.mean() for a, b in zip(first, second, strict=True)])
    if len(differences) == 1:
        return None
    # Where some seeds have accuracies only, what seeds and images have in common cannot be told from either, and
    # counts in both: the interval is a little too wide. Degrees of freedom are Satterthwaite's.
    parts = [(differences.var(ddof=1) / len(differences), len(differences) - 1)]
    if of_images:
        mean = np.mean(of_images, axis=0)
        parts.append((mean.var(ddof=1) / len(mean), len(mean) - 1))
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return None
    freedom = variance**2 / sum(part**2 / freedom for part, freedom in parts)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    return float(differences.mean() - half), float(differences.mean() + half)


def described(found: dict[str, Any]) -> str:
    """Return a difference for a table, such as `+1.2 [0.4, 2.0]`."""
    interval = "" if found["interval"] is None else " [{:.1f}, {:.1f}]".format(*found["interval"])
    return f"{found['difference']:+.1f}{interval}"
