"""Counting the steps that are skipped because their loss or gradient is not finite."""

from __future__ import annotations

import logging
from collections import deque

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


class NonfiniteSteps:
    """Counts skipped steps from flags on the device, of which it reads each only when another step is queued there.

    So the host never waits for the step that it has just queued, and is never more than one ahead: a GPU always has
    work. Processes, whose flags are the same, see them at the same step.
    """

    def __init__(self, is_main: bool):
        self.is_main = is_main
        self.count = self.in_a_row = self.last_step = 0
        self._unread: deque[tuple[int, Tensor, torch.Event | None]] = deque()

    def add(self, step: int, skipped: Tensor) -> None:
        on_host = skipped.to("cpu", non_blocking=True)  # into pinned memory
        copied = None
        if skipped.device.type != "cpu":
            copied = torch.accelerator.current_stream(skipped.device).record_event()
        self._unread.append((step, on_host, copied))
        self.settle(unread=0 if copied is None else 1)

    def settle(self, unread: int = 0) -> None:
        """Read all flags but the last `unread` ones, waiting for them."""
        while len(self._unread) > unread:
            self.last_step, flag, copied = self._unread.popleft()
            if copied is not None:
                copied.synchronize()
            if not flag:
                self.in_a_row = 0
                continue
            self.count += 1
            self.in_a_row += 1
            if self.is_main:
                logger.warning("Step %d is skipped: its loss or gradient is not finite.", self.last_step)
