"""The labelled images of a run itself, for an evaluation that names none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.errors import MissingSplit
from ...data.sources import TEXTURES
from ...formatting import one_line
from ...locations import is_repo_id
from ...runs.hub import is_supernet_on_hub
from ...runs.layout import RunFolder
from ...runs.load import resolve_run
from ...yaml_files import read_mapping
from ..labelled import UnlabelledImage
from ..splits import EvaluationData, open_splits

HOLDOUT = 0.2  # of the train split, where there is no labelled test split
# what of a dataset is read: arguments of `open_splits`, by the keys of a recipe
_PARTS = {"dataset_revision": "revision", "data_dir": "data_dir", "data_files": "data_files"}


@dataclass(frozen=True)
class OwnData:
    """The labelled images that a run's recipe names: those of its own evaluation, else those it is trained on.

    Args:
        name: A Hub id, a folder, or "textures".
        config_name: The configuration of the dataset.
        train_split: The split whose labels vote or train a probe.
        test_split: The split to classify, if the recipe names one.
        holdout: The share of the train split to classify, if the recipe names one.
        image_column: The column of the images, if the recipe names it.
        part: What of the dataset is read, as `open_splits` takes it.
    """

    name: str
    config_name: str | None
    train_split: str
    test_split: str | None
    holdout: float | None
    image_column: str | None
    part: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, run: str | Path) -> OwnData | None:
        """Return the images that the recipe of a run names; None if there is no recipe, or it names no single dataset.

        Args:
            run: The output_dir of a run, one of its checkpoints, or a supernet on the Hub.
        """
        path = Path(run)
        on_hub = not path.is_dir() and is_supernet_on_hub(path)
        if not path.is_dir() and not on_hub:
            return None
        try:
            recipe = read_mapping((RunFolder(resolve_run(run)) if on_hub else RunFolder.containing(path)).recipe)
        except (ValueError, OSError):
            return None
        own = cls._of_recipe(recipe)
        # a folder that a recipe on the Hub names is one of another machine
        return None if own is None or (on_hub and own.name != TEXTURES and not is_repo_id(own.name)) else own

    @classmethod
    def _of_recipe(cls, recipe: Mapping[str, Any]) -> OwnData | None:
        def text(key: str) -> str | None:
            value = recipe.get(key)
            return value if isinstance(value, str) and value else None

        test_split, holdout = text("eval_test_split"), recipe.get("eval_holdout")
        holdout = holdout if isinstance(holdout, float) else None
        if name := text("eval_dataset_name"):
            split = text("eval_train_split") or "train"
            return cls(name, text("eval_dataset_config_name"), split, test_split, holdout, None)
        if not (name := text("dataset_name")) or recipe.get("datasets"):
            return None
        split = text("eval_train_split" if test_split or holdout else "dataset_split") or "train"
        part = {argument: recipe[key] for key, argument in _PARTS.items() if recipe.get(key)}
        return cls(name, text("dataset_config_name"), split, test_split, holdout, text("image_column"), part)

    @property
    def shown(self) -> str:
        """The name of the dataset; of a folder only the last part of its path."""
        return Path(self.name).name if Path(self.name).exists() else self.name


def own_data(run: str | Path) -> OwnData:
    """Return the images that the recipe of a run names.

    Raises:
        ValueError: If there is no recipe, or it names no single dataset.
    """
    own = OwnData.of(run)
    if own is None:
        if not Path(run).exists():
            raise ValueError(
                f"{run} is not here, and names no images of its own: correct the path, or give --dataset_name."
            )
        raise ValueError("Give --dataset_name: see poa evaluate --help.")
    return own


def open_own_splits(
    own: OwnData,
    needs_train: bool = True,
    config_name: str | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    image_column: str | None = None,
    holdout: float | None = None,
    **options: Any,
) -> tuple[EvaluationData, str]:
    """Open the labelled images of a run itself: its test split, or where none is labelled a fifth of its train split.

    Args:
        own: The images, from `own_data`.
        needs_train: Whether a train split is needed.
        config_name: Given instead of what the recipe says, like the arguments that follow.
        train_split: See `open_splits`.
        test_split: See `open_splits`.
        image_column: See `open_splits`.
        holdout: See `open_splits`.
        options: The other options of `open_splits`.

    Returns:
        The splits, and a sentence that says which images they are.

    Raises:
        ValueError: If the images have no labels or cannot be opened.
    """
    train = train_split or own.train_split
    if test_split is None and holdout is None:
        test_split, holdout = (None, own.holdout) if own.holdout else (own.test_split, None)
    column, config = image_column or own.image_column, config_name or own.config_name
    options = {**own.part, **{name: value for name, value in options.items() if value is not None}}
    must_hold_out = False
    try:
        try:
            first = train if needs_train or holdout is not None else None
            data = open_splits(own.name, config, first, test_split, column, holdout=holdout, **options)
        except (MissingSplit, UnlabelledImage):
            if test_split is not None or holdout is not None:
                raise
            must_hold_out = True
            data = open_splits(own.name, config, train, None, column, holdout=HOLDOUT, **options)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"Give --dataset_name: the run's own images, {own.shown}, cannot be measured on ({one_line(error)})."
        ) from error
    return data, _in_words(own, data, must_hold_out)


def _in_words(own: OwnData, data: EvaluationData, must_hold_out: bool) -> str:
    test = f"the split {data.test.name} is classified"
    if data.holdout is not None:
        test = f"{100 * data.holdout.fraction:g} % of the split {data.test.name}, held out at random, is classified"
        if must_hold_out:
            test = f"it has no labelled test split, so {test}"
    elif data.train is not None:
        test += f" by the split {data.train.name}"
    return f"No --dataset_name: measuring on the run's own images, {own.shown}; {test}."
