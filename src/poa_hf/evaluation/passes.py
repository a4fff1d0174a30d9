"""One pass over a split: workers prepare batches, each process visits its share, and all hear what the others found."""

from __future__ import annotations

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch.utils.data import IterableDataset
from tqdm.auto import tqdm

from ..data.workers import batch_loader, worker_share
from .data.coinciding import ImageId
from .data.split_rows import BatchKey, RowT, SplitRows
from .processes import Processes

logger = logging.getLogger(__name__)

NAMED_BAD_ROWS = 10


@dataclass
class Batch:
    """A batch of rows as a worker returns it; a subclass says what becomes of the images.

    Args:
        key: The batch's place in the split.
        bad_rows: The names of rows whose images could not be decoded, with the reason.
        error: What went wrong, if anything. The data loader would put the worker's traceback before the sentence of an
            exception.
    """

    key: BatchKey = (0, 0)
    bad_rows: list[tuple[str, str]] = field(default_factory=list)
    error: str | None = None

    @property
    def decoded(self) -> int:
        """The number of images of the split that could be decoded."""
        return 0


BatchT = TypeVar("BatchT", bound=Batch)


class Batches(IterableDataset[BatchT], ABC, Generic[RowT, BatchT]):
    """Runs in each worker: reads its share of the batches and prepares their images.

    Args:
        images: The split.
        kind: The class of the batches.
        batch_size: Images at a time.
        rank: The number of this process, from 0.
        count: The number of processes that share the split.
    """

    def __init__(self, images: SplitRows[RowT], kind: type[BatchT], batch_size: int, rank: int, count: int) -> None:
        self.images, self.kind, self.batch_size = images, kind, batch_size
        self.rank, self.count = rank, count

    def __iter__(self) -> Iterator[BatchT]:
        worker, workers = worker_share()
        try:
            share = self.rank * workers + worker
            for key, rows in self.images.batches(self.batch_size, share, self.count * workers):
                yield from self._prepare(key, rows)
        except ValueError as error:
            yield self.kind(error=str(error))

    @abstractmethod
    def _prepare(self, key: BatchKey, rows: Sequence[RowT]) -> Iterator[BatchT]:
        """Yield what becomes of a batch of rows.

        Raises:
            ValueError: For rows that end the evaluation.
        """


@dataclass
class Report:
    """What a process tells all others about its share of a pass.

    Args:
        ids: By the key of the batch, what its images are known by.
        bad_rows: The names of rows whose images could not be decoded, with the reason.
        error: The message of an error, if there was one, which all processes then raise.
    """

    ids: dict[BatchKey, list[ImageId]] = field(default_factory=dict)
    bad_rows: list[tuple[str, str]] = field(default_factory=list)
    error: str | None = None


ReportT = TypeVar("ReportT", bound=Report)


def visit_share(
    batches: Batches[Any, BatchT],
    visit: Callable[[BatchT], None],
    report: Report,
    processes: Processes,
    num_workers: int,
) -> None:
    """Visit the batches of this process, with a progress bar, up to the first error.

    Args:
        batches: The share of this process.
        visit: Takes a batch, and may raise ValueError.
        report: Where bad rows and an error are noted.
        processes: The processes that share the split.
        num_workers: Processes that decode images.
    """
    split = batches.images
    hidden = None if processes.is_main else True  # None: hidden where the output is no terminal
    with tqdm(total=split.known_length, desc=split.name, unit="image", leave=False, disable=hidden) as progress:
        for batch in batch_loader(batches, num_workers):
            report.bad_rows += batch.bad_rows
            try:
                if batch.error is not None:
                    raise ValueError(batch.error)
                visit(batch)
            except ValueError as error:
                report.error = str(error)
                break
            rows = (batch.decoded + len(batch.bad_rows)) * processes.count
            progress.update(min(rows, (progress.total or sys.maxsize) - progress.n))


def reports_of_all(
    report: ReportT, split: str, processes: Processes, quiet: bool, kinds: Sequence[str] = ()
) -> list[ReportT]:
    """Return the reports of all processes, by rank, and warn of images that are left out.

    Args:
        report: That of this process.
        split: The name of the split.
        processes: The processes that share it.
        quiet: Do not warn.
        kinds: What is read of a row beside its image, such as "mask".

    Raises:
        ValueError: On all processes alike, for the error of any of them, or if no image could be decoded.
    """
    reports = processes.from_all(report)
    for each in reports:
        if each.error is not None:
            raise ValueError(each.error)
    bad_rows = [row for each in reports for row in each.bad_rows]
    if not any(each.ids for each in reports):
        row, reason = bad_rows[0]
        columns = " or ".join(f"--{kind}_column" for kind in ("image", *kinds))
        raise ValueError(
            f"No image of the {split} split could be decoded (row {row}: {reason}): choose the right column with "
            f"{columns}, or mend the files."
        )
    if processes.is_main and not quiet:
        _warn_of_bad_rows(bad_rows, split)
    return reports


def ids_in_order(reports: Sequence[Report]) -> dict[BatchKey, list[ImageId]]:
    """Return what the images of all processes are known by, batch by batch in the order of the split."""
    return dict(sorted((key, ids) for each in reports for key, ids in each.ids.items()))


def _warn_of_bad_rows(bad_rows: Sequence[tuple[str, str]], split: str) -> None:
    """Warn of images that are left out, each of the first ones by name."""
    for row, reason in bad_rows[:NAMED_BAD_ROWS]:
        logger.warning("Image %s of the %s split could not be decoded and is left out: %s.", row, split, reason)
    if len(bad_rows) > NAMED_BAD_ROWS:
        logger.warning("%d images of the %s split could not be decoded and are left out.", len(bad_rows), split)
