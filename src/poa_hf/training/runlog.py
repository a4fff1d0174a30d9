"""What has happened in a run since the last line of its log."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from ..elastic import SubNetwork
from .optimization import StepHyperparameters


class Window:
    """What has happened since the last line of the log."""

    def __init__(self):
        self.started = time.perf_counter()
        self.sums: dict[str, Tensor] = {}
        self.steps: Tensor | int = 0
        self.images = 0
        self.data_wait = 0.0
        self.statistics: dict[str, float] = {}
        self.values: StepHyperparameters | None = None
        self.sub_network: SubNetwork | None = None

    def add(self, losses: dict[str, Tensor], skipped: Tensor) -> None:
        """Sum up a step's losses on their device, unless the flag there says that it is skipped."""
        self.steps = self.steps + ~skipped
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + torch.where(skipped, 0, value)

    def means(self) -> dict[str, float]:
        """Means over the steps that count; none if there is none."""
        if not int(self.steps):
            return {}
        means = torch.stack(list(self.sums.values())) / self.steps
        return dict(zip(self.sums, means.tolist(), strict=True))
