"""Where the images of a run come from, as options and keys of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..data.dataset_list import open_images_of, read_datasets, shares_of
from ..formatting import enumerated
from ..ranges import check_fields, check_given
from .data_options import HELP, RECIPE_KEYS


@dataclass
class DataArguments:
    """Where the images come from."""

    # Dataset
    dataset_name: str = field(
        default="textures",
        metadata={"help": "Hub id, local folder (parquet, WebDataset, image files), or `textures` (built in)."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": HELP["dataset_config_name"]})
    dataset_split: str = field(
        default="train", metadata={"help": "Split to train on, or slices of splits: train[:90%], train+validation."}
    )
    dataset_revision: str | None = field(default=None, metadata={"help": HELP["dataset_revision"]})
    data_dir: str | None = field(default=None, metadata={"help": HELP["data_dir"]})
    data_files: list[str] | None = field(default=None, metadata={"help": HELP["data_files"], "separate": True})
    streaming: bool = field(default=True, metadata={"help": "Stream instead of downloading and converting first."})
    datasets: list[Any] | None = field(
        default=None,
        metadata={
            "help": "Several datasets instead of one, each with its weight: photos:0.7 me/images:0.3. In a recipe, "
            "each may be a mapping with the keys above and a weight.",
            "separate": True,
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)
        check_given(self)
        if self.datasets is None:
            return
        self.datasets = read_datasets(self.datasets)
        for name in ("dataset_name", "dataset_config_name", *RECIPE_KEYS):
            default = "textures" if name == "dataset_name" else None
            if getattr(self, name) != default:
                raise ValueError(
                    f"{name} is given beside datasets: give it for one of these, or leave one of them out."
                )

    def open_dataset(self) -> Any:
        """Open the images, of one dataset or as a `DatasetMixture`.

        Raises:
            ValueError: As `data.sources.open_dataset` does.
        """
        return open_images_of(vars(self))

    @property
    def described(self) -> str:
        """What the images are called in a line about the run."""
        if self.datasets is None:
            names = [self.dataset_name, self.dataset_config_name, f"({self.dataset_split})"]
            return " ".join(name for name in names if name)
        return enumerated(f"{name} ({share})" for name, share in shares_of(self.datasets))

    @property
    def part_of_dataset(self) -> dict[str, Any]:
        """What of the dataset is read, by the names that `open_dataset` and `open_splits` have for it."""
        return {"revision": self.dataset_revision, "data_dir": self.data_dir, "data_files": self.data_files}
