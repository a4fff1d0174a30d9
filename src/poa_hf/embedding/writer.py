"""Writing the parts of embeddings that are missing, by one process or several."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm.auto import tqdm

from ..evaluation.processes import Processes
from ..runs.atomic import remove_leftovers, write_bytes, write_text
from ..runs.layout import LOCK
from ..runs.lock import LockedError, locked
from .features import Decoded, Embedder, Features, Turn, decoded_batches, turns
from .files import Part, part_files
from .manifest import MANIFEST, RECORDS, SKIPPED_IMAGES, Manifest, Record, read_records
from .rows import ImageRow, ImageRows, Position

logger = logging.getLogger(__name__)

NAMED_BAD_ROWS = 10
_Value = TypeVar("_Value")


@dataclass
class Writer:
    """Writes parts; all processes call the same methods."""

    folder: Path
    manifest: Manifest
    images: ImageRows
    model: Embedder
    processes: Processes

    def start(self, held_files: ExitStack, keep_rows: bool) -> dict[int, Record]:
        """Make the folder, or take up what it holds, and return the records of the parts that are complete.

        Args:
            held_files: Keeps the folder's lock until it is closed.
            keep_rows: Whether a folder that exists says how many rows a part has.
        """

        def begin() -> tuple[Manifest, dict[int, Record]]:
            self._hold(held_files)
            if not (self.folder / MANIFEST).exists():
                (self.folder / RECORDS).mkdir(parents=True, exist_ok=True)
                self.manifest.write(self.folder)
                return self.manifest, {}
            held = Manifest.read(self.folder)
            if keep_rows:
                self.manifest.rows_per_shard = held.rows_per_shard
            self._refuse_others(held)
            remove_leftovers(self.folder)
            remove_leftovers(self.folder / RECORDS)
            (self.folder / RECORDS).mkdir(exist_ok=True)
            return held, {
                record.number: record for record in read_records(self.folder) if record.is_intact(self.folder)
            }

        self.manifest, records = self._on_main(begin)
        if self.images.is_stream:
            records = {number: record for number, record in records.items() if record.after is not None}
        missing = self._missing_of(records)
        if self.manifest.complete and missing:
            self.manifest.complete = False  # files were removed since
        if self.processes.is_main and self.manifest.complete:
            logger.info("%s is complete already: %s images.", self.folder, f"{self.manifest.images:,}")
        elif self.processes.is_main and records:
            logger.info("Going on in %s: %d parts are written already.", self.folder, len(records))
        return records

    def _hold(self, held_files: ExitStack) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{self.folder} cannot be made ({error.strerror}): give another --output.") from error
        try:
            held_files.enter_context(locked(self.folder / LOCK))
        except LockedError as error:
            raise LockedError(
                f"{self.folder} is being written by another command ({error}): wait until it ends, or give another "
                "--output."
            ) from None

    def write_missing(self, records: dict[int, Record], batch_size: int, num_workers: int) -> None:
        """Write the parts that are missing, and say in the manifest that all are there."""
        error: Exception | None = None
        try:
            self._write_own(records, batch_size, num_workers)
        except (ValueError, OSError) as raised:  # the others are not to wait for ever
            error = raised
        errors = [each for each in self.processes.from_all(error) if each is not None]
        if errors:
            raise errors[0]
        self._on_main(self._finish)

    def _write_own(self, records: dict[int, Record], batch_size: int, num_workers: int) -> None:
        rank, count, rows = self.processes.rank, self.processes.count, self.manifest.rows_per_shard
        done = {number: _position(record) for number, record in records.items()}
        wanted = turns(self.images, rows, batch_size, done, rank, count)
        batches = decoded_batches(self.images, self.model.subject.processor, wanted, num_workers)
        known = self.images.known_length
        total = None if known is None else max(0, known - rows * len(records))
        hidden = None if self.processes.is_main else True  # None: hidden where the output is no terminal
        warnings, growing = _Warnings(), _Growing(self.manifest)
        with tqdm(total=total, desc="images", unit="image", leave=False, disable=hidden) as progress:
            for batch in batches:
                warnings.add(batch.skipped)
                growing.add(batch, None if batch.pixel_values is None else self.model(batch.pixel_values))
                if batch.turn.is_last:
                    self._write(growing)
                    growing = _Growing(self.manifest)
                seen = (len(batch.rows) + len(batch.skipped)) * count
                progress.update(min(seen, (progress.total or sys.maxsize) - progress.n))
            if growing.turn is not None:  # the end of a stream
                self._write(growing)
        warnings.finish()

    def _write(self, growing: _Growing) -> None:
        assert growing.turn is not None
        number, after = growing.turn.part, growing.turn.after
        part = growing.part(self.images.has_labels)
        files = part_files(part, number, self.manifest.format, self.images.labels_are_text, self.manifest.class_names)
        for name, content in files.items():
            write_bytes(self.folder / name, content)
        sizes = {name: len(content) for name, content in files.items()}
        record = Record(number, len(part), sizes, growing.skipped, None if after is None else list(after))
        record.write(self.folder)

    def _finish(self) -> None:
        records = read_records(self.folder)
        skipped = [row for record in records for row in record.skipped]
        images = sum(record.rows for record in records)
        if not images:
            _, name, reason = skipped[0]
            raise ValueError(
                f"No image could be decoded (row {name}: {reason}): check that the image column holds images."
            )
        lines = [json.dumps({"id": index, "image": name, "reason": reason}) + "\n" for index, name, reason in skipped]
        write_text(self.folder / SKIPPED_IMAGES, "".join(lines))
        self.manifest.complete, self.manifest.images, self.manifest.skipped = True, images, len(skipped)
        self.manifest.write(self.folder)

    def _missing_of(self, records: dict[int, Record]) -> bool:
        """Whether a part is missing, as far as the number of rows is known."""
        parts = 0 if not records else max(records) + 1
        if self.manifest.complete:
            rows = (self.manifest.images or 0) + (self.manifest.skipped or 0)
            parts = -(-rows // self.manifest.rows_per_shard)
        elif (length := self.images.known_length) is not None:
            parts = -(-length // self.manifest.rows_per_shard)
        return any(number not in records for number in range(parts))

    def _refuse_others(self, held: Manifest) -> None:
        found = list(held.differences(self.manifest))
        if found:
            name, there, here = found[0]
            what = {"model": "another model", "dataset": "another dataset"}.get(name.partition(".")[0], "another kind")
            raise ValueError(
                f"{self.folder} holds embeddings of {what} ({name} is {there[:80]} there, and {here[:80]} now): give "
                "another --output, or delete the folder."
            )

    def _on_main(self, function: Callable[[], _Value]) -> _Value:
        """Run a function on the main process, and return its result, or raise its error, on all."""
        result: Any = None
        error: Exception | None = None
        if self.processes.is_main:
            try:
                result = function()
            except (ValueError, OSError) as raised:
                error = raised
        result, error = self.processes.from_all((result, error))[0]
        if error is not None:
            raise error
        return result


class _Growing:
    """A part that is being computed.

    Args:
        manifest: Says what is kept.

    Attributes:
        turn: The last turn that was added; None if there is none yet.
        skipped: Number, name and reason of each row that could not be decoded.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.turn: Turn | None = None
        self.skipped: list[list[Any]] = []
        self._rows: list[ImageRow] = []
        self._images: list[np.ndarray] = []
        self._patches: list[np.ndarray] = []

    def add(self, batch: Decoded, features: Features | None) -> None:
        """Add a batch; `features` are those of its images, if any could be decoded.

        Raises:
            ValueError: For features of other shapes than those before, or beyond what can be stored.
        """
        self.turn = batch.turn
        self.skipped += batch.skipped
        self._rows += batch.rows
        if features is not None:
            self._images.append(self._stored(features.images, [self.manifest.dimension]))
        if features is not None and features.patches is not None:
            self._patches.append(self._stored(features.patches, self.manifest.patches or []))

    def part(self, has_labels: bool) -> Part:
        """Return the whole part."""
        grid, dtype = self.manifest.patches, self.manifest.dtype
        return Part(
            ids=np.array([row.index for row in self._rows], np.int64),
            paths=[row.path for row in self._rows],
            features=np.concatenate([np.empty((0, self.manifest.dimension), dtype), *self._images]),
            patches=None if grid is None else np.concatenate([np.empty((0, *grid), dtype), *self._patches]),
            labels=[row.label for row in self._rows] if has_labels else None,
        )

    def _stored(self, values: np.ndarray, shape: list[int]) -> np.ndarray:
        if list(values.shape[1:]) != shape:
            raise ValueError(
                f"The image processor makes images of several sizes (features {values.shape[1:]} and {tuple(shape)}): "
                "use one that crops or pads them to one size."
            )
        with np.errstate(over="ignore"):
            stored = values.astype(self.manifest.dtype)
        if not np.isfinite(stored).all():
            raise ValueError(
                f"Some features are as large as {np.abs(values).max():.3g}, which is beyond float16: use --dtype "
                "float32."
            )
        return stored


class _Warnings:
    """Warns of the first images that cannot be decoded, and of the number of all."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, skipped: list[list[Any]]) -> None:
        for _, name, reason in skipped:
            self.count += 1
            if self.count <= NAMED_BAD_ROWS:
                logger.warning("Image %s could not be decoded and is left out: %s.", name, reason)

    def finish(self) -> None:
        if self.count > NAMED_BAD_ROWS:
            logger.warning("%d images could not be decoded and are left out.", self.count)


def _position(record: Record) -> Position | None:
    return None if record.after is None else (record.after[0], record.after[1], record.after[2])
