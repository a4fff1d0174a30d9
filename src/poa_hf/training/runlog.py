"""What a run writes down: one JSON object a line, and means since the last one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from ..elastic import SubNetwork
from .optimization import StepHyperparameters


class JsonLines:
    """A file of lines with a `step`; lines after `last_step`, which a resumed run writes again, are dropped first.

    Does nothing unless `enabled`.
    """

    def __init__(self, path: Path, last_step: int, enabled: bool):
        self.path, self.enabled = path, enabled
        if not (enabled and path.exists()):
            return
        kept = []
        for line in path.read_text(errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= last_step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, TypeError, KeyError):  # half-written when the run was killed
                continue
        aside = path.with_name(f".unfinished-{path.name}")
        aside.write_text("".join(kept))
        aside.replace(path)

    def write(self, content: dict) -> None:
        if self.enabled:
            with open(self.path, "a") as file:
                file.write(json.dumps(content) + "\n")


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
