"""Gather features and results across the processes of one evaluation, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor

BATCHES_AT_A_TIME = 64
Value = TypeVar("Value")


class Processes:
    """The one or more processes of an evaluation, as `accelerate launch` or `torchrun` started them.

    All of them must call the same methods in the same order, within a `with` block, at whose end the connection between
    them is closed.

    Attributes:
        rank: The number of this process, from 0.
        count: The number of processes.
        device: The device of this process.
        is_main: Whether this is the process that talks to the user.
    """

    def __init__(self) -> None:
        # on a GPU if there is one; without `cpu`, processes on CPUs would each take themselves for the only one
        self.state = PartialState(cpu=not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))
        self.rank: int = self.state.process_index
        self.count: int = self.state.num_processes
        device = self.state.device
        # to PyTorch, Accelerate's "cpu:0" is another device than "cpu": it would copy every tensor that is moved there
        self.device = torch.device("cpu") if device.type == "cpu" else device
        self.is_main: bool = self.state.is_main_process
        self._group: dist.ProcessGroup | None = None

    def __enter__(self) -> Processes:
        if self.count > 1:
            # features are on the CPU; and a process may wait long for others that have more to compute
            self._group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def from_all(self, value: Value) -> list[Value]:
        """Return the `value` of every process, by rank."""
        if self.count == 1:
            return [value]
        values: list[Value] = [value] * self.count
        dist.all_gather_object(values, value, group=self._group)
        return values

    def gather_rows(self, batches: list[Tensor], places: Sequence[list[Tensor]], owner: int) -> Tensor | None:
        """Gather the batches of all processes as one tensor at one of them.

        Args:
            batches: This process's batches, [(B, ...), ...]. The list is emptied on the way, so that the features are
                not in memory twice.
            places: By rank, the rows of the result that each of its batches fills: [(B,), ...].
            owner: The rank of the process that gets the result.

        Returns:
            (N, ...) at the owner, None at the others.
        """
        batches.reverse()  # taken from the end
        result: Tensor | None = None
        for start in range(0, max(map(len, places)), BATCHES_AT_A_TIME):
            parts = [batches.pop() for _ in range(min(BATCHES_AT_A_TIME, len(batches)))]
            part = torch.cat(parts) if parts else None
            received: list[Tensor | None] = [part]
            if self.count > 1:
                received = [None] * self.count
                dist.gather_object(part, received if self.rank == owner else None, dst=owner, group=self._group)
            if self.rank != owner:
                continue
            for rows, places_of_rank in zip(received, places, strict=True):
                if rows is None:
                    continue
                if result is None:
                    total = sum(len(place) for batches_of_rank in places for place in batches_of_rank)
                    result = torch.empty(total, *rows.shape[1:], dtype=rows.dtype)  # (N, ...)
                result[torch.cat(places_of_rank[start : start + BATCHES_AT_A_TIME])] = rows
        return result
