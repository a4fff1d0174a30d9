"""Reading the embeddings in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .files import Part, read_part
from .manifest import Manifest, Record, read_records


@dataclass
class Embeddings:
    """The embeddings of a dataset, as `embed` writes them. What is asked for is read from the files.

    Args:
        folder: Where they lie.
        manifest: What the folder says of itself.
        records: Its parts.
    """

    folder: Path
    manifest: Manifest
    records: list[Record]

    @classmethod
    def load(cls, folder: str | Path) -> Embeddings:
        """Open the embeddings in a folder.

        Raises:
            ValueError: If the folder holds none, or not all of them yet.
        """
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder: give one that poa embed wrote.")
        manifest, records = Manifest.read(folder), read_records(folder)
        damaged = next((record for record in records if not record.is_intact(folder)), None)
        if damaged is not None:
            raise ValueError(
                f"A file of part {damaged.number} in {folder} is missing or of another size: run the same poa embed "
                "once more to write it again."
            )
        if not manifest.complete or sum(record.rows for record in records) != manifest.images:
            raise ValueError(f"{folder} does not hold all embeddings yet: run the same poa embed once more to go on.")
        return cls(folder, manifest, records)

    def __len__(self) -> int:
        """Return the number of images with features."""
        return self.manifest.images or 0

    def parts(self, patches: bool = False) -> Iterator[Part]:
        """Iterate over the parts, one in memory at a time.

        Args:
            patches: Whether to read the features of patches as well.

        Raises:
            ValueError: If a part is damaged.
        """
        for record in self.records:
            part = read_part(self.folder, record.number, self.manifest.format, patches)
            if len(part) != record.rows or part.features.shape[1] != self.manifest.dimension:
                raise ValueError(
                    f"Part {record.number} in {self.folder} holds other rows than were written: delete its files, and "
                    "run poa embed once more."
                )
            yield part

    def label_of(self, part: Part, place: int) -> int | str | None:
        """Return the label of a row of a part: the name of its class if it has one; None without labels."""
        label: int | str | None = part.labels[place] if part.labels is not None else None
        names = self.manifest.class_names
        return names[label] if names and isinstance(label, int) and 0 <= label < len(names) else label

    @cached_property
    def ids(self) -> np.ndarray:
        """The numbers of the rows in the dataset, int64 (N,)."""
        return np.concatenate([part.ids for part in self.parts()])

    @cached_property
    def paths(self) -> list[str | None]:
        """The paths of the images; None where there is none."""
        return [path for part in self.parts() for path in part.paths]

    @cached_property
    def labels(self) -> list[Any] | None:
        """The labels; None if they were not kept."""
        if self.manifest.dataset.get("has_labels") is not True:
            return None
        return [label for part in self.parts() for label in part.labels or []]

    @property
    def features(self) -> np.ndarray:
        """The features of all images, (N, D). They are read anew each time."""
        return np.concatenate([part.features for part in self.parts()])

    @property
    def patches(self) -> np.ndarray | None:
        """The features of all patches, (N, h, w, D); None if they were not kept. They are read anew each time."""
        if self.manifest.patches is None:
            return None
        return np.concatenate([part.patches for part in self.parts(patches=True) if part.patches is not None])
