"""Options of tasks on altered test images: which patches are dropped or shuffled, and how images are corrupted."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from ..ranges import Range
from .parser import CommandParser, number_in, numbers_in, words

# tasks that classify by k-NN
KNN_TASKS = ("knn", "occlusion", "shuffle", "corruptions", "backgrounds")


def add_alteration_options(parser: CommandParser) -> None:
    """Add the options of `occlusion`, `shuffle` and `corruptions` to `poa evaluate` and `poa compare`."""
    altered = parser.add_argument_group("altered test images")
    ratios, patches = Range(0, 1, above=True, below=True), Range(2, 1024, whole=True)
    parser.add_option(
        "--occlusion_ratios", tasks=["occlusion"], group=altered,
        several=True, type=numbers_in(ratios), metavar="SHARE,...",
        default=(0.25, 0.5, 0.75, 0.9), help="shares of patches that are dropped (default: 0.25,0.5,0.75,0.9)",
    )  # fmt: skip
    parser.add_option(
        "--occlusion_grid", tasks=["occlusion"], group=altered, type=number_in(patches), metavar="N",
        help="patches per side, some of which are dropped (default: a ViT's own, else up to 14 that divide the sides)",
    )  # fmt: skip
    parser.add_option(
        "--shuffle_grids", tasks=["shuffle"], group=altered, several=True, type=numbers_in(patches), metavar="N,...",
        help="patches per side that are shuffled (default: those of 2,4,8,14 that divide the sides)",
    )  # fmt: skip
    parser.add_option(
        "--corruptions", tasks=["corruptions"], group=altered, several=True, type=words, metavar="NAME,...",
        help="some of gaussian_noise, shot_noise, gaussian_blur, motion_blur, jpeg, brightness, contrast (default: "
        "all)",
    )  # fmt: skip
    parser.add_option(
        "--corruption_strengths", tasks=["corruptions"], group=altered,
        several=True, type=numbers_in(Range(1, 5, whole=True)),
        metavar="N,...", help="strengths from 1 to 5 (default: all)",
    )  # fmt: skip


def alteration_options(args: Namespace) -> dict[str, Any]:
    """Return what these options say, as `TaskOptions` takes it."""
    names = ("occlusion_ratios", "occlusion_grid", "shuffle_grids", "corruptions", "corruption_strengths")
    return {name: getattr(args, name) for name in names}
