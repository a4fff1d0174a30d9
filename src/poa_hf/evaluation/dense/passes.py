"""One pass over a split: what is kept of each image, in the split's order, at the process that owns the size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..data.coinciding import ImageId
from ..data.split_rows import BatchKey
from ..passes import Report, ids_in_order, reports_of_all, visit_share
from ..processes import Processes
from .images import DenseImages
from .prepared import ExampleBatch, ExampleBatches, Preparation

Key = tuple[str, ...]  # begins with the size
Visit = Callable[[ExampleBatch], Iterable[dict[Key, Tensor]]]


@dataclass
class PassResult:
    """What a pass has kept.

    Args:
        rows: By key, (N, ...) in the order of the split, of the sizes that this process owns.
        ids: What the images are known by.
        skipped: The number of images that could not be decoded.
    """

    rows: dict[Key, Tensor]
    ids: list[ImageId]
    skipped: int


@dataclass
class _Report(Report):
    """What a process tells all others about its share of a pass.

    Args:
        counts: By key of what is kept, the batches and their numbers of rows, in the order in which they were made.
    """

    counts: dict[Key, list[tuple[BatchKey, int]]] = field(default_factory=dict)


def run_pass(
    split: DenseImages,
    preparation: Preparation,
    visit: Visit,
    owners: Mapping[str, int],
    processes: Processes,
    batch_size: int,
    num_workers: int,
    quiet: bool,
) -> PassResult:
    """Visit all images of a split. One process reads, decodes and prepares each image, once.

    A batch holds the same images whatever the number of processes, so what is kept does not depend on it either.

    Args:
        split: The images.
        preparation: How they are prepared.
        visit: Gives, for each image of a batch, what is kept of it: tensors (rows, ...) by key.
        owners: By size, the rank of the process that gets what is kept for it.
        processes: The processes that share the work.
        batch_size: Images at a time, per process.
        num_workers: Processes that decode images, per process.
        quiet: Do not warn of images that are left out.

    Raises:
        ValueError: On all processes alike, for values that are not valid, or if no image can be decoded.
    """
    report, kept = _Report(), dict[Key, list[Tensor]]()
    batches = ExampleBatches(split, preparation, batch_size, processes.rank, processes.count)
    visit_share(batches, lambda batch: _add(batch, visit, report, kept), report, processes, num_workers)
    reports = reports_of_all(report, split.name, processes, quiet, split.kinds)
    ids = [image for part in ids_in_order(reports).values() for image in part]
    rows_by_key = _gathered(kept, reports, owners, processes)
    return PassResult(rows_by_key, ids, sum(len(each.bad_rows) for each in reports))


def _add(batch: ExampleBatch, visit: Visit, report: _Report, kept: dict[Key, list[Tensor]]) -> None:
    if not batch.examples:
        return
    report.ids[batch.key] = [example.image_id for example in batch.examples]
    parts: dict[Key, list[Tensor]] = {}
    for of_image in visit(batch):
        for key, rows in of_image.items():
            parts.setdefault(key, []).append(rows.cpu())
    for key, tensors in parts.items():
        rows = torch.cat(tensors)
        kept.setdefault(key, []).append(rows)
        report.counts.setdefault(key, []).append((batch.key, len(rows)))


def _gathered(
    kept: dict[Key, list[Tensor]], reports: list[_Report], owners: Mapping[str, int], processes: Processes
) -> dict[Key, Tensor]:
    """Bring what is kept to the owners, in the order of the split."""
    owned = {}
    for key in sorted({key for each in reports for key in each.counts}):
        places, start = {}, 0
        for batch, count in sorted(part for each in reports for part in each.counts.get(key, ())):
            places[batch] = torch.arange(start, start + count)
            start += count
        by_rank = [[places[batch] for batch, _ in each.counts.get(key, ())] for each in reports]
        rows = processes.gather_rows(kept.pop(key, []), by_rank, owners[key[0]])
        if rows is not None:
            owned[key] = rows
    return owned
