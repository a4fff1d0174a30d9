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
        "--protocol", group=linear, choices=["poa", "dinov2"],
        help="measure as these authors do: 52 classifiers of four blocks, trained on augmented views; the best one on "
        "the test images counts (default: one whose learning rate is chosen on held-out train images)",
    )  # fmt: skip
    parser.add_option(
        "--linear_augmentation", group=linear, type=number_in(Range(0, 1000, whole=True)), metavar="N",
        help="learn from N augmented views of each train image, random crops and flips, one in each epoch; reading "
        "images takes N times as long (default: 10 with --protocol, otherwise 0)",
    )  # fmt: skip
    parser.add_option(
        "--linear_steps", group=linear, type=number_in(COUNT), metavar="N", help="steps of --protocol (default: 12500)"
    )


def linear_options(args: Namespace) -> dict[str, Any]:
    """Return the options of the linear probe as `TaskOptions` takes them.

    Raises:
        ValueError: If one is given without the task that it is for.
    """
    options = {name: getattr(args, name) for name in ("protocol", "linear_augmentation", "linear_steps")}
    given = [name for name, value in options.items() if value is not None]
    if given and "linear" not in args.tasks:
        raise ValueError(f"--{given[0]} is for the task linear, which is not among --tasks: add it, or leave it out.")
    return options
