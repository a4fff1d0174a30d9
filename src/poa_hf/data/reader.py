"""The rows of a stream's batches, read by processes of their own and handed to those that decode them.

Reading and decoding have their own numbers of processes: a lane is read by one process, in its order, whoever decodes
its rows. So the order of the images does not depend on the number of workers.

Follows `order`, which says which rows a batch holds; `batches` decodes them.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .errors import UnreadableData
from .order import BatchPlan, BatchRows, StreamOrder
from .workers import batch_loader, worker_share


class RowReader(IterableDataset[Any]):
    """Reads the rows of one batch after another, or, as reader w of R, those of every R-th lane.

    Args:
        plan: What every batch depends on.
        first_batch: Number of the global batch to begin with.
        lane_states: States from which the lanes resume; see `order.StreamOrder`.
    """

    def __init__(self, plan: BatchPlan, first_batch: int, lane_states: dict[str, dict]):
        self.first_batch = first_batch
        self.order = StreamOrder(plan, lane_states)

    def __iter__(self) -> Iterator[Any]:
        reader, num_readers = worker_share()
        try:
            for batch in count(self.first_batch):
                rows = self.order.read(batch, reader, num_readers)
                yield rows if get_worker_info() is None else _packed(rows)
        except UnreadableData as error:
            # Raised here, DataLoader would print the reader's whole traceback before the message.
            while True:
                yield error

    def close(self) -> None:
        """Close the files that are being read."""
        self.order.close()


def read_batches(reader: RowReader, num_readers: int, ahead: int, start_method: str | None) -> Iterator[list[Any]]:
    """Iterate over the rows of one batch after another, as lists that `unpacked` takes.

    Args:
        reader: What reads the rows.
        num_readers: Processes that read, each its share of the lanes; 0 to read in this process.
        ahead: Batches that are read before they are asked for.
        start_method: How the processes are started; see `workers.batch_loader`.
    """
    parts = iter(batch_loader(reader, num_readers, prefetch_factor=ahead, start_method=start_method))
    try:
        yield from map(list, zip(*[parts] * max(1, num_readers), strict=False))
    finally:
        reader.close()
        del parts  # ends the processes


def unpacked(parts: list[Any]) -> list[BatchRows]:
    """Return the parts of a batch as the readers read them.

    Raises:
        UnreadableData: If a reader could not read its part.
    """
    for part in parts:
        if isinstance(part, UnreadableData):
            raise part
    # One array of bytes lies in shared memory and passes through the main process without being copied.
    return [pickle.loads(part.numpy().data) if isinstance(part, Tensor) else part for part in parts]  # noqa: S301


def _packed(rows: BatchRows) -> Tensor:
    return torch.from_numpy(np.frombuffer(bytearray(pickle.dumps(rows, pickle.HIGHEST_PROTOCOL)), dtype=np.uint8))
