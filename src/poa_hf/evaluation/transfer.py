"""Experiments that train a model many times: which learning rate, over several seeds, kept so that they can go on.

How a model is trained is the caller's affair: `examples/transfer.py` fine-tunes and probes sizes of a run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import datasets

from ..data.sources import TEXTURES
from ..data.textures import EVALUATION_TEXTURES, TextureDataset
from ..formatting import one_line
from ..runs.atomic import write_json
from ..runs.json_files import read_object
from .splits import TEST_SPLITS

# (learning rate, seed, whether it is tested on the held-out part of the train split) -> accuracy in [0, 1], seconds
Training = Callable[[float | None, int, bool], tuple[float, float]]


def load_splits(
    name: str, max_train_images: int | None = None, max_test_images: int | None = None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Load the train and the test split of a labelled dataset; a fifth of each class is tested on if it has no other.

    Args:
        name: A folder or Hub name, or `textures` for the built-in images of evaluations.
        max_train_images: The number of train images to use, chosen at random; all by default.
        max_test_images: The same of the test images.

    Raises:
        ValueError: If it has no train split, or no column of classes to choose the test images by.
    """
    found: Mapping[str, datasets.Dataset] = _textures() if name == TEXTURES else datasets.load_dataset(name)
    if "train" not in found:
        raise ValueError(f"{name} has no train split, only {', '.join(found)}: rename one of them.")
    test = next((found[split] for split in TEST_SPLITS if split in found), None)
    parts = (found["train"], test) if test is not None else split_classes(found["train"], 0.2)
    limits = zip(parts, (max_train_images, max_test_images), strict=True)
    train, test = (part.shuffle(seed=0).select(range(min(len(part), limit or len(part)))) for part, limit in limits)
    return train, test


def _textures() -> dict[str, datasets.Dataset]:
    label = datasets.ClassLabel(names=[*TextureDataset.label_names])
    features = datasets.Features({"image": datasets.Image(), "label": label})
    images = {split: TextureDataset(seed=seed, length=count) for split, (seed, count) in EVALUATION_TEXTURES.items()}
    return {
        split: datasets.Dataset.from_list([part[i] for i in range(len(part))], features=features)
        for split, part in images.items()
    }


def split_classes(data: datasets.Dataset, share: float) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Divide a dataset at random into what is left and a share of each class.

    Raises:
        ValueError: If it has no column of classes, or a class with a single image.
    """
    label = next((name for name, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)), None)
    if label is None:
        raise ValueError(f"The dataset has no ClassLabel column, only {', '.join(data.features)}: give classes.")
    parts = data.train_test_split(share, stratify_by_column=label, seed=0)
    return parts["train"], parts["test"]


class KeptResults:
    """The results of single trainings, each in a file with the settings that it belongs to.

    A training that fails does not stop the others: its error is kept in place of its result, and it is tried again
    when it is asked for again.

    Args:
        folder: The folder of the files, which is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.failed = folder, 0
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, settings: dict[str, Any], compute: Callable[[], tuple[float, float]]) -> dict[str, Any]:
        """Return a kept result, or compute and keep it.

        Args:
            name: The name of its file.
            settings: What it depends on, as JSON gives it back. A result with other settings is computed again.
            compute: The training, which returns the accuracy and its seconds.

        Returns:
            `accuracy` and `seconds`, or `error`, and the `settings`.
        """
        path = self.folder / f"{name}.json"
        if path.exists():
            kept = read_object(path)
            if kept.get("settings") == settings and "error" not in kept:
                return kept
        result: dict[str, Any] = {"settings": settings}
        try:
            result["accuracy"], result["seconds"] = compute()
            print(f"{name}: {100 * result['accuracy']:.1f} % ({result['seconds']:.0f} s)", flush=True)
        except (Exception, SystemExit) as error:
            result["error"] = one_line(error)
            self.failed += 1
            print(f"{name} failed: {result['error']}", file=sys.stderr, flush=True)
        write_json(path, result)
        return result


@dataclass
class TransferRow:
    """What one model reaches on one dataset.

    Args:
        dataset: The dataset's name.
        size: The size.
        parameters: Its number of parameters.
        start: Where its weights come from.
        method: How it is trained.
        rate: The learning rate that did best on the held-out part; None for a method that chooses its own.
        accuracies: By seed, in [0, 1], without trainings that failed.
        seconds: The mean time of a training.
        error: Why a training failed; None if none did.
    """

    dataset: str
    size: str
    parameters: int
    start: str
    method: str
    rate: float | None
    accuracies: list[float]
    seconds: float | None
    error: str | None = None

    @property
    def cells(self) -> list[str]:
        """The row of the table in Markdown, without its bars."""
        percent = [100 * accuracy for accuracy in self.accuracies]
        spread = f" ± {stdev(percent):.1f} ({len(percent)} seeds)" if len(percent) > 1 else ""
        score = [f"{mean(percent):.1f}{spread}"] if percent else []
        failed = [f"failed: {self.error}"] if self.error else []
        rate = f"{self.rate:g}" if self.rate is not None else ""
        seconds = f"{self.seconds:.0f}" if self.seconds is not None else ""
        name = Path(self.dataset).name
        text = "; ".join([*score, *failed]).replace("|", "\\|")
        return [name, self.size, f"{self.parameters:,}", self.start, self.method, rate, text, seconds]


def measure(
    results: KeptResults,
    name: str,
    settings: dict[str, Any],
    train: Training,
    rates: Sequence[float] | None,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Choose the learning rate on a held-out part with the first seed, then train and test once with each seed.

    Args:
        results: Where each training is kept.
        name: The beginning of the trainings' names.
        settings: What all of them depend on.
        train: One training.
        rates: The learning rates to choose from; None for a method that chooses its own.
        seeds: The seeds, at least one.

    Returns:
        `rate`, `accuracies`, `seconds` and `error` of a `TransferRow`.
    """

    def trained(rate: float | None, seed: int, is_choice: bool) -> dict[str, Any]:
        part = f"rate-{rate:g}-" if rate is not None else ""
        cell = f"{name}-{part}seed-{seed}" + "-held-out" * is_choice
        return results.get(cell, settings, lambda: train(rate, seed, is_choice))

    rate = rates[0] if rates else None
    if rates and len(rates) > 1:
        tried = {rate: trained(rate, seeds[0], True) for rate in rates}
        rate = max(rates, key=lambda rate: tried[rate].get("accuracy", -1.0))
        if "error" in tried[rate]:  # all of them failed
            return {"rate": None, "accuracies": [], "seconds": None, "error": tried[rate]["error"]}
    tests = [trained(rate, seed, False) for seed in seeds]
    done = [test for test in tests if "error" not in test]
    return {
        "rate": rate,
        "accuracies": [test["accuracy"] for test in done],
        "seconds": mean(test["seconds"] for test in done) if done else None,
        "error": next((test["error"] for test in tests if "error" in test), None),
    }


def transfer_table(rows: Sequence[TransferRow]) -> str:
    """Return the rows as a table in Markdown."""
    head = ["dataset", "size", "parameters", "start", "method", "rate", "accuracy, %", "seconds"]
    lines = [head, ["---"] * len(head), *(row.cells for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def write_rows(path: Path, rows: Sequence[TransferRow]) -> None:
    """Write all numbers of the rows as JSON."""
    write_json(path, [asdict(row) for row in rows])
