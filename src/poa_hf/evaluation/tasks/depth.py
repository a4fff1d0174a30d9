"""Depth with frozen features of patches: how far away what each pixel shows is.

As in DINOv2's linear evaluation, one linear layer on the features gives 256 numbers, one per bin of distances, evenly
spaced up to the largest. Made positive and divided by their sum, they weigh the bins' centres, and the sum is the
distance. The layer is trained by the scale-invariant logarithmic loss at a random sample of pixels of each image, for
several learning rates at once, and a held-out part of the train images picks one. DINOv2's second loss, on gradients
between neighbouring pixels, is left out, as sampled pixels have no neighbours.

Every pixel with a measured distance counts, in the depth map's own resolution. Both numbers are means over images, as
is usual: RMSE, in the unit of the depth maps, and δ1, the share of pixels that are off by less than a factor of 1.25.

Sources: Oquab et al. 2023, "DINOv2", section 7.4 and appendix B.4; Bhat et al. 2021, "AdaBins"; Eigen et al. 2014.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ...ranges import POSITIVE, check_number
from ..dense.maps import at_pixels, upsampled
from .dense_task import DenseOptions, DenseTask, Example, Fitted, drawn_pixels, held_out_rows
from .probe import standardisation
from .task import Score

BINS = 256
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)  # of AdamW, for standardised features
STEPS, BATCH_SIZE = 1000, 256
SMALLEST_WEIGHT = 0.1  # of a bin, before weights are divided by their sum
SMALLEST_DEPTH = 1e-3
VARIANCE_SHARE = 0.15  # of the squared mean in the scale-invariant loss
FACTOR = 1.25  # by which a distance may be off for δ1


@dataclass(frozen=True)
class DepthOptions(DenseOptions):
    """The options of depth.

    Args:
        depth_scale: What stored values are divided by, such as 1000 where they are millimetres and metres are wanted.
        max_depth: The largest distance; pixels beyond it do not count. By default all count, and the bins end at the
            largest distance of the sampled train pixels.
    """

    depth_scale: float = 1.0
    max_depth: float | None = None


class DepthTask(DenseTask[DepthOptions]):
    """The task `depth`."""

    name, kind = "depth", "depth"

    def check(self, options: DepthOptions, train_images: int | None) -> None:
        super().check(options, train_images)
        check_number("depth_scale", options.depth_scale, POSITIVE)
        if options.max_depth is not None:
            check_number("max_depth", options.max_depth, POSITIVE)

    def collect(self, features: Tensor, example: Example, quota: int, options: DepthOptions) -> dict[str, Tensor]:
        depths = torch.from_numpy(example.values["depth"])
        generator = example.generator(options.seed)
        # NaN is no distance, and not below any
        rows, columns, share = drawn_pixels(depths <= (options.max_depth or math.inf), quota, generator)
        device = features.device
        points = at_pixels(features, rows.to(device), columns.to(device), depths.shape[0], depths.shape[1])
        return {"points": points, "depths": torch.stack([depths[rows, columns], share], dim=1)}

    def fit(self, samples: Mapping[str, Tensor], split: str, options: DepthOptions, device: torch.device) -> Fitted:
        depths, shares = samples["depths"].unbind(dim=1)
        if len(depths) == 0:
            raise ValueError(_nothing_measured(split, options))
        bins = torch.linspace(SMALLEST_DEPTH, options.max_depth or depths.max().item(), BINS)
        held_out = held_out_rows(shares, options.seed)
        if held_out.all():
            raise ValueError(f"The {split} split has one pixel with a distance only: give more.")
        mean, deviation = standardisation(samples["points"], (~held_out).nonzero()[:, 0])
        points = (samples["points"] - mean) / deviation
        layers = _trained(points[~held_out].to(device), depths[~held_out].to(device), bins.to(device), options.seed)
        errors = _held_out_errors(layers, points[held_out].to(device), depths[held_out].to(device), bins.to(device))
        best = int(errors.argmin())
        if not errors[best].isfinite():
            raise ValueError(f"Training diverged with every learning rate ({list(LEARNING_RATES)}): check the depths.")
        weight, bias = (tensor[best].cpu() for tensor in layers)
        weight = weight / deviation[:, None]  # the standardisation becomes part of the layer
        return {
            "weight": weight,
            "bias": bias - mean @ weight,
            "bins": bins,
            "pixels": len(depths),
            "learning_rate": LEARNING_RATES[best],
            "held_out_rmse": errors[best].item(),
        }

    def measure(
        self, fitted: Fitted, features: Tensor, view: Tensor | None, example: Example, options: DepthOptions
    ) -> Tensor:
        truth = torch.from_numpy(example.values["depth"]).to(features.device)
        logits = features @ fitted["weight"] + fitted["bias"]  # (h, w, bins)
        squares = close = count = torch.zeros((), dtype=torch.float64, device=features.device)
        for part, values in upsampled(logits, truth.shape[0], truth.shape[1]):
            counted = truth[part] <= (options.max_depth or math.inf)
            right, predicted = truth[part][counted].double(), depths_of(values[counted], fitted["bins"]).double()
            squares = squares + (predicted - right).square().sum()
            close = close + (torch.maximum(predicted / right, right / predicted) < FACTOR).sum()
            count = count + counted.sum()
        return torch.stack([(squares / count).sqrt(), close / count])  # NaN where nothing was measured

    def scores(self, outcomes: Tensor, fitted: Fitted, split: str, options: DepthOptions) -> list[Score]:
        if outcomes.isnan().all():
            raise ValueError(_nothing_measured(split, options))
        settings = {
            "seed": options.seed,
            "bins": BINS,
            "pixels": fitted["pixels"],
            "depth_scale": options.depth_scale,
            "max_depth": options.max_depth,
        }
        details = {"learning_rate": fitted["learning_rate"], "held_out_rmse": fitted["held_out_rmse"]}
        return [
            Score(metric, values.nanmean().item(), dict(settings), details, outcomes=values)
            for metric, values in zip(("depth_rmse", "depth_delta1"), outcomes.T, strict=True)
        ]


DEPTH = DepthTask()


def depths_of(logits: Tensor, bins: Tensor) -> Tensor:
    """Return the distances that numbers of bins (..., bins) stand for: (...,)."""
    weights = logits.relu() + SMALLEST_WEIGHT
    return (weights @ bins) / weights.sum(dim=-1)


def scale_invariant_loss(predicted: Tensor, depths: Tensor) -> Tensor:
    """Return the square root of variance plus part of the squared mean of logarithmic errors, over the last axis."""
    error = predicted.clamp(min=SMALLEST_DEPTH).log() - depths.clamp(min=SMALLEST_DEPTH).log()
    return (error.var(dim=-1, correction=0) + VARIANCE_SHARE * error.mean(dim=-1).square() + 1e-12).sqrt()


def _trained(points: Tensor, depths: Tensor, bins: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Train one layer per learning rate on the same batches: weights (R, D, bins) and biases (R, bins)."""
    generator = torch.Generator().manual_seed(seed)
    count, channels = points.shape
    bound = 1 / math.sqrt(channels)
    first = torch.empty(channels, BINS).uniform_(-bound, bound, generator=generator).to(points.device)
    weights = [nn.Parameter(first.clone()) for _ in LEARNING_RATES]
    biases = [nn.Parameter(torch.zeros(BINS, device=points.device)) for _ in LEARNING_RATES]
    groups = [{"params": [w, b], "lr": lr} for w, b, lr in zip(weights, biases, LEARNING_RATES, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    schedule = LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / STEPS)) / 2)
    with torch.enable_grad():
        for batch in _batches(count, generator):
            logits = torch.stack([points[batch] @ w + b for w, b in zip(weights, biases, strict=True)])  # (R, B, bins)
            loss = scale_invariant_loss(depths_of(logits, bins), depths[batch]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return torch.stack([w.detach() for w in weights]), torch.stack([b.detach() for b in biases])


def _batches(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of each step."""
    size, order = min(BATCH_SIZE, count), torch.empty(0, dtype=torch.int64)
    for _ in range(STEPS):
        if len(order) < size:
            order = torch.randperm(count, generator=generator)
        yield order[:size]
        order = order[size:]


def _held_out_errors(layers: tuple[Tensor, Tensor], points: Tensor, depths: Tensor, bins: Tensor) -> Tensor:
    """Return the RMSE of each layer, (R,), infinite where it is not finite."""
    squares = torch.zeros(len(LEARNING_RATES), dtype=torch.float64, device=points.device)
    for part, right in zip(points.split(BATCH_SIZE), depths.split(BATCH_SIZE), strict=True):
        logits = part @ layers[0] + layers[1][:, None]  # (R, B, bins)
        squares += (depths_of(logits, bins) - right).double().square().sum(dim=1)
    errors = (squares / len(depths)).sqrt()
    return errors.where(errors.isfinite(), np.inf)


def _nothing_measured(split: str, options: DepthOptions) -> str:
    limit = f" up to {options.max_depth:g}" if options.max_depth is not None else ""
    return (
        f"No pixel of the {split} split's depth maps has a distance above 0{limit}: give other depth maps, or another "
        "--depth_scale."
    )
