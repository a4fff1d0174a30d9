"""What several processes of one evaluation tell each other, on the CPU: features and results."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor

BATCHES_AT_A_TIME = 64


class Processes:
    """The processes of this evaluation, one or many, as `accelerate launch` or `torchrun` started them.

    All must call the same methods in the same order, within a `with` block, which ends what connects them.
    """

    def __init__(self):
        # on a GPU where there is one; without `cpu`, processes on CPUs would each take themselves for the only one
        self.state = PartialState(cpu=not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))
        self.rank, self.count = self.state.process_index, self.state.num_processes
        device = self.state.device
        # to PyTorch, Accelerate's "cpu:0" is another device than "cpu": it would copy every tensor that is moved there
        self.device = torch.device("cpu") if device.type == "cpu" else device
        self.is_main = self.state.is_main_process
        self._group: dist.ProcessGroup | None = None

    def __enter__(self) -> Processes:
        if self.count > 1:
            # features are on the CPU; and a process may wait for long for others that have more to compute
            self._group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
        return self

    def __exit__(self, *exception) -> None:
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def from_all(self, value: Any) -> list[Any]:
        """Everyone's `value`, by rank."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        dist.all_gather_object(values, value, group=self._group)
        return values

    def gather_rows(self, batches: list[Tensor], places: Sequence[list[Tensor]], owner: int) -> Tensor | None:
        """Everyone's batches of rows (B, D) as one (N, D), at process `owner`; None at the others.

        Args:
            batches: this process's; emptied on the way, so that memory is not needed twice.
            places: for every rank, where in the result the rows of each of its batches belong: [(B,), ...].
        """
        batches.reverse()  # taken from the end
        rounds = range(0, max(map(len, places)), BATCHES_AT_A_TIME)
        result = None
        for start in rounds:
            parts = [batches.pop() for _ in range(min(BATCHES_AT_A_TIME, len(batches)))]
            part = torch.cat(parts) if parts else None
            received: list[Tensor | None] = [part]
            if self.count > 1:
                received = [None] * self.count
                dist.gather_object(part, received if self.rank == owner else None, dst=owner, group=self._group)
            if self.rank != owner:
                continue
            for rows, own_places in zip(received, places, strict=True):
                if rows is None:
                    continue
                if result is None:
                    total = sum(len(place) for rank in places for place in rank)
                    result = torch.empty(total, rows.shape[1])
                result[torch.cat(own_places[start : start + BATCHES_AT_A_TIME])] = rows
        return result
