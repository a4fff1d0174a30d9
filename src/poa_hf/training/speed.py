"""How fast a run is: its steps' seconds, floating-point operations, and their share of what the device can do."""

from __future__ import annotations

import logging
import re
import statistics
import time
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import numpy as np
import torch

from ..models.compiled_blocks import BlockCompiler
from ..models.configuration_poa import PoaConfig
from ..models.flops import count_forward_flops, summed_over_stages
from ..sub_network import SubNetwork
from .arguments import PoaTrainingArguments

logger = logging.getLogger(__name__)

# Dense matrix products in TFLOP/s, in bfloat16 and in float32 (without TF32), from NVIDIA's data sheets. The first name
# whose words a device's name holds counts.
_PEAK_TFLOPS = {
    "B200": (2250, 75), "H200 NVL": (835, 60), "H200": (989, 67), "H100 PCIe": (756, 51), "H100 NVL": (835, 60),
    "H100": (989, 67), "GH200": (989, 67), "H800 PCIe": (756, 51), "H800": (989, 67), "H20": (148, 44),
    "A100": (312, 19.5), "A800": (312, 19.5),
    "A30": (165, 10.3), "A40": (150, 37.4), "A10G": (70, 35), "A10": (125, 31.2), "L40S": (362, 91.6),
    "L40": (181, 90.5), "L4": (121, 30.3),
}  # fmt: skip
_MEASURED_SIDE = 8192


class FrozenTeacher(Protocol):
    """A model whose features of each global crop are computed without gradients."""

    @property
    def flops(self) -> int:
        """Floating-point operations of its features of one crop."""


class StepFlops:
    """Floating-point operations of the matrix products in a step of one process, by the elastic student's size.

    A backward pass counts twice its forward pass. What is computed a second time to save memory (activation
    checkpointing, logits) is not counted.

    Args:
        config: The configuration of the model.
        args: The arguments of the run.
        frozen: Teachers that are frozen, each with the `flops` of its features of a global crop.
    """

    def __init__(self, config: PoaConfig, args: PoaTrainingArguments, frozen: Sequence[FrozenTeacher] = ()):
        self.config, self.args, self.frozen = config, args, frozen
        backbone = config.backbone_config
        sides = [args.global_crop_size] + [args.local_crop_size] * (args.num_local_crops > 0)
        self._forward = summed_over_stages(
            backbone.space, lambda size: np.array([count_forward_flops(backbone, size, side) for side in sides])
        )

    def of_step(self, *sizes: SubNetwork) -> float:
        """Return the operations of one optimizer step whose elastic students have these sizes."""
        args, full = self.args, self.config.backbone_config.space.full
        crops = np.array([2, args.num_local_crops][: 1 + (args.num_local_crops > 0)])  # of an image
        of_teachers = sum(teacher.flops for teacher in self.frozen)
        if self.config.distillation is None:
            of_teachers += self._forward(full)[0]
        if self.config.elastic_teacher:
            of_teachers += sum(self._forward(size)[0] for size in sizes)
        students = (full, *sizes)
        of_students = np.sum([self._forward(size) for size in students], axis=0)
        passes = of_teachers * 2 + self._gram_matrices(students) + 3 * of_students @ crops
        images = args.per_device_train_batch_size * args.gradient_accumulation_steps
        return float(passes + self._heads(students, int(crops.sum()))) * images

    def _gram_matrices(self, students: Sequence[SubNetwork]) -> int:
        """Return the operations of the students' Gram matrices of both global crops of an image."""
        if not self.config.gram_weight:
            return 0
        backbone = self.config.backbone_config
        tokens = (self.args.global_crop_size // backbone.patch_grid) ** 2
        channels = sum(self._channels(size) for size in students)
        return 2 * 3 * 2 * tokens**2 * channels  # of 2 crops, forward and backward, a product and its addition

    def _channels(self, size: SubNetwork) -> int:
        return self.config.backbone_config.plain_config(size).hidden_size

    def _heads(self, sizes: Sequence[SubNetwork], crops: int) -> float:
        """Return the operations of the heads, or of the projections of matched features, of all crops of an image."""
        args, config, fields = self.args, self.config, self.config.distillation
        backbone = config.backbone_config
        students = [self._channels(size) for size in sizes]
        tokens = 2 * (args.global_crop_size // backbone.patch_grid) ** 2  # of the global crops
        if fields is not None and fields["loss"] == "features":
            matched = crops * fields["image_features"] + tokens * fields["patch_features"]
            return 3 * 2 * sum(students) * matched
        masked = tokens * args.mask_probability * sum(args.mask_ratio) / 2
        if fields is None:
            of_teacher = sum(map(self._head, students if config.elastic_teacher else students[:1]))
        else:
            masked *= fields["patch_features"] > 0
            of_teacher = (1 + 3) * self._head(fields["image_features"])  # the moving average and what it follows
        return of_teacher * (2 + masked) + 3 * sum(map(self._head, students)) * (crops + masked)

    @cache  # noqa: B019 (lives as long as the run)
    def _head(self, features: int) -> int:
        """Return the operations of all heads' forward passes of one token of so many features."""
        config = self.config
        widths = [features] + [config.head_hidden_size] * (config.head_num_layers - 1) + [config.head_bottleneck_size]
        mlp = sum(a * b for a, b in zip(widths, widths[1:], strict=False))
        return sum(2 * (mlp + config.head_bottleneck_size * count) for count in config.num_prototypes)


class SpeedLog:
    """Says how fast the steps of a run are.

    Args:
        config: The configuration of the model.
        args: The arguments of the run.
        device: The device of this process.
        compiler: The compiler of the blocks, if they are compiled.
        frozen: See `StepFlops`.
    """

    def __init__(
        self,
        config: PoaConfig,
        args: PoaTrainingArguments,
        device: torch.device,
        compiler: BlockCompiler | None,
        frozen: Sequence[FrozenTeacher] = (),
    ):
        self.flops, self.device, self.compiler = StepFlops(config, args, frozen), device, compiler
        dtype = torch.bfloat16 if args.bf16 else torch.float32
        self.peak: float | None = None
        if args.measure_peak:
            self.peak = measured_flops(device, dtype)
        elif device.type == "cuda":
            self.peak = peak_flops(torch.cuda.get_device_name(device), dtype)
        self._recompilations = 0

    def values(self, seconds: Sequence[float], sizes: Sequence[tuple[SubNetwork, ...]]) -> dict[str, float]:
        """Return the values of a log line: those of `speed_summary`, and `compile_seconds` of the run so far.

        Args:
            seconds: Seconds of each step since the last line.
            sizes: The sizes of the elastic students in each of them.
        """
        values = speed_summary(seconds, [self.flops.of_step(*of_step) for of_step in sizes], self.peak, self.device)
        if self.compiler is not None:
            values["compile_seconds"] = self.compiler.seconds
            if self.compiler.recompilations > self._recompilations:
                self._recompilations = self.compiler.recompilations
                logger.warning(
                    "%d blocks were compiled more than once, which should not be needed: if this number grows with "
                    "every line, use --compile off and report it.",
                    self._recompilations,
                )
        return values


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Return the rate of dense matrix products that a device's maker states, per second; None if it is not known.

    Nothing is known of a part of a device (MIG).
    """
    words = re.findall(r"[A-Za-z0-9]+", device_name)
    if "MIG" in words:
        return None
    for name, (bfloat16, float32) in _PEAK_TFLOPS.items():
        if f" {name} " in f" {' '.join(words)} ":
            return 1e12 * (float32 if dtype == torch.float32 else bfloat16)
    return None


def measured_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Measure the rate of one large matrix product, in floating-point operations per second."""
    side = _MEASURED_SIDE if device.type == "cuda" else 1024
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def run() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    times, ends = [run()], time.perf_counter() + seconds
    while time.perf_counter() < ends or len(times) < 4:
        times.append(run())
    return 2 * side**3 / statistics.median(times[1:])


def speed_summary(
    seconds: Sequence[float], flops: Sequence[float], peak: float | None, device: torch.device
) -> dict[str, float]:
    """Return the values of a log line that say how fast its steps were.

    Args:
        seconds: Seconds of each step.
        flops: Floating-point operations of each step, of this process.
        peak: What the device can do per second; None if it is not known.
        device: The device, whose memory is asked for.

    Returns:
        `step_seconds`, the median, and `slowest_step_seconds`; `tflops`, of the matrix products per second and process;
        `mfu`, their share of the peak, left out if that is not known; `peak_memory_gb`, the most that tensors on a GPU
        have taken so far, in GB of 1e9 bytes.
    """
    rate = sum(flops) / sum(seconds)
    values = {"step_seconds": statistics.median(seconds), "slowest_step_seconds": max(seconds), "tflops": rate / 1e12}
    if peak is not None:
        values["mfu"] = rate / peak
    if device.type == "cuda":
        values["peak_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return values
