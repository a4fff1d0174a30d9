"""A foreign teacher's features of all images, computed once and kept in the folder of the run.

They are features of the whole images, without augmentation, so that one per image is enough: both students learn to
compute it from every crop. The file belongs to the teacher's weights, its image size, and the images of the run. The
images' ids are tensors in it too, as safetensors takes no more than 100 MB of text.
"""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..data.rows import IndexedImages
from ..data.whole_images import WholeImages
from ..formatting import format_bytes
from ..models.foreign_teacher import ForeignTeacher
from ..objective.feature_matching import TeacherFeatures
from ..runs.atomic import write_bytes
from ..runs.layout import RunFolder
from .arguments import PoaTrainingArguments
from .checkpointing import on_main

_MOST_BYTES = 16 * 10**9

logger = logging.getLogger(__name__)


class CachedTeacher:
    """A teacher's image features, looked up by the ids of images.

    Args:
        teacher: The teacher, prepared; it is not needed any more once `start` has returned.
        dataset: The images of the run, which can be read by index.
        args: The arguments of the run.
        accelerator: The accelerator of the run.

    Raises:
        ValueError: If the images are a stream, or too many.
    """

    flops = 0  # of a step

    def __init__(self, teacher: ForeignTeacher, dataset: Any, args: PoaTrainingArguments, accelerator: Accelerator):
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise ValueError(
                "cache_teacher needs one dataset whose images are read by index, and not a stream or a mixture: add "
                "--streaming false, or leave it out."
            )
        if (size := 4 * len(dataset) * teacher.image_features) > _MOST_BYTES:
            raise ValueError(
                f"cache_teacher would keep {format_bytes(size)} of features of {len(dataset):,} images in memory, and "
                f"is made for {format_bytes(_MOST_BYTES)} at most: leave it out."
            )
        self._teacher: ForeignTeacher | None = teacher
        self._images = WholeImages(IndexedImages(dataset, args.image_column), args, teacher.image_size or 1)
        self.args, self.accelerator = args, accelerator
        self.path = RunFolder(Path(args.output_dir)).teacher_features
        self._features, self._rows = torch.empty(0), dict[str, int]()

    def start(self) -> None:
        """Read the features of an earlier part of the run, or compute and write them. All processes call this."""
        teacher = self._teacher
        if teacher is None:
            return
        key = json.dumps([teacher.fingerprint, teacher.image_size, len(self._images)])
        found = _read(self.path, key)
        everywhere = self.accelerator.reduce(torch.tensor(float(found is not None), device=self.accelerator.device))
        if found is None or int(everywhere) < self.accelerator.num_processes:
            found = self._compute(teacher)
            self._write(*found, key)
        names, features = found
        self._rows = {name: row for row, name in enumerate(names)}
        self._features = features.to(self.accelerator.device)
        self._teacher = None  # its memory is free

    def __call__(self, batch: dict[str, Any], crops: Tensor) -> TeacherFeatures:
        """Return the features of a batch's images (2B, D), the same for both global crops of an image."""
        rows = torch.tensor([self._rows[name] for name in batch["image_ids"]])
        return TeacherFeatures(self._features[rows.to(self._features.device)].repeat(2, 1))

    def _write(self, names: list[str], features: Tensor, key: str) -> None:
        """Write the file on the main process; all learn of a failure."""

        def write() -> None:
            write_bytes(self.path, save({"features": features, **_packed(names)}, {"key": key}))

        on_main(self.accelerator, write)

    def _compute(self, teacher: ForeignTeacher) -> tuple[list[str], Tensor]:
        """Return the ids of the images that can be decoded, and their features on the CPU, in the order of the data."""
        accelerator, args = self.accelerator, self.args
        share = range(accelerator.process_index, len(self._images), accelerator.num_processes)
        loader = DataLoader(
            Subset(self._images, share),
            batch_size=2 * args.per_device_train_batch_size,
            num_workers=args.dataloader_num_workers,
            collate_fn=list,
        )
        if accelerator.is_main_process:
            logger.info("Computing the features of %d images by %s, once.", len(self._images), teacher.name)
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (args.image_mean, args.image_std))
        found: list[tuple[int, str, Tensor]] = []
        read = 0
        for rows in tqdm(loader, disable=args.disable_tqdm or not accelerator.is_main_process, desc="teacher"):
            good = [(place, name, pixels) for place, (name, pixels) in enumerate(rows, read) if pixels is not None]
            read += len(rows)
            if not good:
                continue
            pixels = torch.stack([each for *_, each in good]).float().div(255).sub(mean).div(std)
            features = teacher(pixels.to(accelerator.device), None).images.cpu()
            found += [(share[place], name, feature) for (place, name, _), feature in zip(good, features, strict=True)]
        if accelerator.num_processes > 1:
            found = sorted(gather_object(found), key=lambda each: each[0])
        if not found:
            raise ValueError("None of the images can be decoded: check that the image column holds images.")
        return [name for _, name, _ in found], torch.stack([feature for *_, feature in found])


def _read(path: Path, key: str) -> tuple[list[str], Tensor] | None:
    """Return the ids and features in a file; None if there is none, or it belongs to other images or weights."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("key") != key:
                return None
            features = file.get_tensor("features")
            if "image_ids" in metadata:  # as text, as it was written at first
                return json.loads(metadata["image_ids"]), features
            return _unpacked(file.get_tensor("image_ids"), file.get_tensor("image_id_ends")), features
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _packed(names: list[str]) -> dict[str, Tensor]:
    """Return texts as tensors: the bytes of all, and where each of them ends."""
    parts = [name.encode("utf-8", "surrogatepass") for name in names]  # a path may hold bytes that are no text
    ends = torch.tensor([len(part) for part in parts]).cumsum(0)
    return {"image_ids": torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8), "image_id_ends": ends}


def _unpacked(content: Tensor, ends: Tensor) -> list[str]:
    joined, limits = content.numpy().tobytes(), [0, *ends.tolist()]
    return [joined[start:end].decode("utf-8", "surrogatepass") for start, end in itertools.pairwise(limits)]
