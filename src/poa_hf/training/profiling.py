"""Profiles of single steps, as a trace and a table of kernels."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ..runs.atomic import write_text, written_folder

TABLE_ROWS = 40


class StepProfiler:
    """Profiles some steps of a run, and writes what it has seen when the last of them ends.

    Args:
        steps: The steps to profile, counted from 1; None profiles nothing.
        folder: Where `trace.json` (for chrome://tracing or Perfetto) and `kernels.txt` are written.
        device: The device of the run.
    """

    def __init__(self, steps: range | None, folder: Path, device: torch.device):
        self.steps, self.folder, self.device = steps or range(0), folder, device
        self._profile: profile | None = None
        self._stack = ExitStack()

    def before(self, step: int) -> None:
        """Start at the first step; `step` is the one that begins, counted from 1."""
        if self._profile is None and step in self.steps:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
            self._profile = self._stack.enter_context(profile(activities=activities))

    def after(self, step: int, is_last: bool) -> None:
        """Stop and write at the last step of the profile or of the run; `step` is the one that has ended."""
        if self._profile is None or not (is_last or step >= self.steps[-1]):
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._stack.close()
        order = "self_device_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        with written_folder(self.folder) as folder:
            self._profile.export_chrome_trace(str(folder / "trace.json"))
            table = self._profile.key_averages().table(sort_by=order, row_limit=TABLE_ROWS, max_name_column_width=80)
            write_text(folder / "kernels.txt", table)
        self._profile, self.steps = None, range(0)
