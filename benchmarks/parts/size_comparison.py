"""What sizes of one run and sizes trained alone are worth on the same test images, kept beside each run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poa_hf.evaluation.evaluator import measure_sizes
from poa_hf.evaluation.splits import EvaluationData
from poa_hf.evaluation.statistics.paired import paired_difference
from poa_hf.evaluation.subject import Subject, load_subject
from poa_hf.evaluation.tasks import TaskOptions

TASKS = ("knn", "linear")
Outcomes = dict[str, np.ndarray]  # of each test image, by "TASK SIZE"


def outcomes(
    path: Path, subject: Callable[[], Subject], data: EvaluationData, sizes: Sequence[str], tasks: Sequence[str] = TASKS
) -> Outcomes:
    """Return which test images are classified correctly, measured once and kept in a file.

    Args:
        path: The file, a `.npz`.
        subject: Loads the model.
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
        name = f"{task} {size}"
        a, b = (np.stack([each[name] for each in side], axis=1) for side in (first, second))
        paired = paired_difference(a, b) if len(first) > 1 else paired_difference(a[:, 0], b[:, 0])
        found[task] = {
            "first": [100 * float(value) for value in a.mean(axis=0)],
            "second": [100 * float(value) for value in b.mean(axis=0)],
            "difference": 100 * paired.difference,
            "interval": None if paired.interval is None else [100 * bound for bound in paired.interval],
        }
    return found


def described(found: dict[str, Any]) -> str:
    """Return a difference for a table, such as `+1.2 [0.4, 2.0]`."""
    interval = "" if found["interval"] is None else " [{:.1f}, {:.1f}]".format(*found["interval"])
    return f"{found['difference']:+.1f}{interval}"
