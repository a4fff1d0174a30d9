"""The options of the linear probe, alike in every command that measures it."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from ..ranges import COUNT, Range
from .parser import CommandParser, number_in


def add_linear_options(parser: CommandParser) -> None:
    """Add the options of the linear probe to a command."""
    linear = parser.add_argument_group("linear probe")
    parser.add_option(
        "--protocol", tasks=["linear"], group=linear, choices=["poa", "dinov2"],
        help="measure as these authors do: 52 classifiers of four blocks, trained on augmented views; the best one on "
        "the test images counts (default: one whose learning rate is chosen on held-out train images)",
    )  # fmt: skip
    parser.add_option(
        "--linear_augmentation", tasks=["linear"], group=linear,
        type=number_in(Range(0, 1000, whole=True)), metavar="N",
        help="learn from N augmented views of each train image, random crops and flips, one in each epoch; reading "
        "the train images takes N + 1 times as long (default: 10 with --protocol, otherwise 0)",
    )  # fmt: skip
    parser.add_option(
        "--linear_steps",
        tasks=["linear"],
        group=linear,
        type=number_in(COUNT),
        metavar="N",
        help="steps of --protocol (default: 12500)",
    )


def linear_options(args: Namespace) -> dict[str, Any]:
    """Return the options of the linear probe as `TaskOptions` takes them."""
    return {name: getattr(args, name) for name in ("protocol", "linear_augmentation", "linear_steps")}
