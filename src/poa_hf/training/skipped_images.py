"""The images that could not be decoded in a run, of all processes: named once in the log, and listed in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..data.bad_rows import BadRows
from ..runs.json_lines import JsonLines, read_lines


class SkippedImages:
    """Counts and lists bad images. All processes make one and call `report` together; the main one warns and writes.

    Args:
        accelerator: The accelerator of the run.
        path: The file with a line for each image: `step`, `image`, `reason` and `process`, and
            `damaged_shard` for what stands for the rest of a damaged file.
        first_step: The step at which the run starts or is resumed; lines after it are dropped.
    """

    def __init__(self, accelerator: Accelerator, path: Path, first_step: int) -> None:
        self.accelerator = accelerator
        self.lines = JsonLines(path, first_step, accelerator.is_main_process)
        listed = read_lines(path) if accelerator.is_main_process else []
        self._rows = BadRows(str(line["image"]) for line in listed if "image" in line)
        self._damaged_shards = {str(line["image"]) for line in listed if line.get("damaged_shard")}
        self._sent: set[str] = set()
        self._unsent: list[dict[str, Any]] = []
        self._skipped = 0

    def add(self, batch: dict[str, Any], step: int) -> None:
        """Take note of a batch of the loader, of which a step is made."""
        self._skipped += batch["skipped"]
        for name, reason in batch["bad_rows"]:
            if name not in self._sent:
                self._sent.add(name)
                process = self.accelerator.process_index
                line = {"step": step, "image": name, "reason": reason, "process": process}
                self._unsent.append(line | ({"damaged_shard": True} if name in batch["damaged_shards"] else {}))

    def report(self) -> dict[str, int]:
        """Warn of the new bad images of all processes, and list them.

        Returns:
            `skipped_images`, how many images were replaced since the start of this part of the run, and on the main
            process `damaged_shards`, how many files the run has met of which rows are left out.
        """
        counts = torch.tensor([self._skipped, len(self._unsent)], device=self.accelerator.device)
        skipped, unsent = self.accelerator.reduce(counts, "sum").tolist()
        if unsent:
            lines = gather_object(self._unsent)
            self._unsent = []
            if self.accelerator.is_main_process:
                for line in sorted(lines, key=lambda line: line["step"]):
                    if line.get("damaged_shard"):
                        self._damaged_shards.add(line["image"])
                    if self._rows.warn_of(line["image"], line["reason"]):
                        self.lines.write(line)
        return {"skipped_images": int(skipped), "damaged_shards": len(self._damaged_shards)}
