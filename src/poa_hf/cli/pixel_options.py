"""Options of tasks that look at patches, and so need a value for each pixel."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from ..ranges import COUNT, POSITIVE, Range
from .parser import CommandParser, number_in, numbers_in


def add_pixel_options(parser: CommandParser) -> None:
    """Add the options of `segmentation`, `depth` and `correspondence` to a command."""
    group = parser.add_argument_group("patches")
    parser.add_option(
        "--mask_column", tasks=["segmentation", "backgrounds"], group=group, metavar="C",
        help="column of the masks, with the number of a class for each pixel, if its name does not tell",
    )  # fmt: skip
    parser.add_option(
        "--num_classes", tasks=["segmentation"], group=group, type=number_in(Range(2, 65_536, whole=True)), metavar="N",
        help="number of classes of masks (default: those of the train masks)",
    )  # fmt: skip
    parser.add_option(
        "--ignore_index", tasks=["segmentation"], group=group,
        several=True, type=numbers_in(Range(-(2**31), 2**31, whole=True)), default=[],
        metavar="N,...",
        help="numbers of pixels without a class, which do not count, beside 255",
    )  # fmt: skip
    parser.add_option(
        "--depth_column", tasks=["depth"], group=group, metavar="C",
        help="column of the depth maps, with a distance for each pixel, if its name does not tell",
    )  # fmt: skip
    parser.add_option(
        "--depth_scale", tasks=["depth"], group=group, type=number_in(POSITIVE), default=1.0, metavar="N",
        help="what stored distances are divided by, such as 1000 for millimetres that are to be metres (default: 1)",
    )  # fmt: skip
    parser.add_option(
        "--max_depth", tasks=["depth"], group=group, type=number_in(POSITIVE), metavar="N",
        help="largest distance that counts (default: all do, and bins end at that of the sampled train pixels)",
    )  # fmt: skip
    parser.add_option(
        "--correspondence_pixels", tasks=["correspondence"], group=group,
        several=True, type=numbers_in(POSITIVE), default=(4, 8, 16, 32),
        metavar="N,...",
        help="distances in pixels within which a patch counts as found (default: 4,8,16,32)",
    )  # fmt: skip
    parser.add_option(
        "--dense_image_size", tasks=["segmentation", "depth", "correspondence"], group=group,
        type=number_in(COUNT), metavar="N",
        help="short side of the images for tasks of patches (default: that of the model's processor)",
    )  # fmt: skip


def task_options(args: Namespace) -> dict[str, Any]:
    """Return what these options say, as `TaskOptions` takes it."""
    return {
        "num_classes": args.num_classes,
        "ignore_index": tuple(args.ignore_index),
        "depth_scale": args.depth_scale,
        "max_depth": args.max_depth,
        "correspondence_pixels": tuple(args.correspondence_pixels),
        "dense_image_size": args.dense_image_size,
    }
