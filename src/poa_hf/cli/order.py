"""`poa order`: an elastic family from any pre-trained model, without training."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ..formatting import printable
from ..ranges import COUNT, SEED, WHOLE
from .data_options import add_data_options, data_options
from .main import quiet_libraries
from .overrides import set_field, split_model_overrides
from .parser import CommandParser, number_in


def order(argv: list[str]) -> None:
    """Run `poa order RUN_OR_MODEL --dataset_name D --output DIR`."""
    argv, overrides = split_model_overrides(argv)
    args = _parser().parse_args(argv)
    model: dict[str, Any] = {}
    for path, value in overrides:
        set_field(model, path, value)
    quiet_libraries()
    from ..data.sources import open_dataset
    from ..models.declared_types import as_numbers
    from ..publishing.export import check_output
    from ..runs.layout import CHECKSUMS, CONFIG, EVALUATIONS, PROCESSOR, UNIT_ORDER, WEIGHTS
    from ..warm_start.ordering.run import write_ordered_family

    files = {CONFIG, WEIGHTS, PROCESSOR, UNIT_ORDER, CHECKSUMS, EVALUATIONS}
    check_output(args.output, args.overwrite, args.model, replaceable=files, content="an ordered model")
    model["backbone_config"] = as_numbers(model.get("backbone_config") or {})
    dataset = open_dataset(args.dataset_name, args.dataset_config_name, args.dataset_split, **data_options(args))
    elastic, start, found = write_ordered_family(
        args.model,
        dataset,
        args.output,
        args.num_images,
        model,
        image_column=args.image_column,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        seed=args.seed,
    )
    space, output = elastic.config.backbone_config.space, shlex.quote(str(args.output))
    print(printable(f"{start}\n{found}"))
    print(f"{len(space)} sizes, {space.smallest} to {space.full}, written to {args.output}")
    print(f"next: poa evaluate {output} --dataset_name {shlex.quote(args.dataset_name)} --sizes all")


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="poa order",
        usage="poa order RUN_OR_MODEL --dataset_name D --output DIR [--OPTION VALUE ...] [--model.FIELD VALUE ...]",
        description="Make an elastic family of a pre-trained model in minutes, without training: its channels, heads "
        "and hidden units are put in order of importance, so that each smaller size keeps those that matter most. The "
        "full size computes what the model does.",
        epilog="Every other command takes the output as a run. Training it further makes the smaller sizes much "
        "better: poa pretrain --init_from. Fields of the model, such as the smallest size, are given as "
        "--model.backbone_config.FIELD.",
    )
    parser.add_option(
        "model", metavar="RUN_OR_MODEL", help="folder or Hub id of a pre-trained model or run, as poa pretrain "
        "--init_from takes it",
    )  # fmt: skip
    parser.add_option("--output", required=True, type=Path, metavar="DIR", help="folder of the elastic family")
    parser.add_option("--overwrite", action="store_true", help="replace an ordered model that is already there")
    images = parser.add_argument_group("images")
    parser.add_option(
        "--dataset_name", group=images, required=True, metavar="D",
        help="images without labels: a dataset of the Hub, a folder, or textures",
    )  # fmt: skip
    parser.add_option("--dataset_split", group=images, default="train", metavar="S", help="split of the images")
    add_data_options(parser, images)
    parser.add_option("--image_column", group=images, metavar="C", help="column of the images, if they have several")
    parser.add_option(
        "--num_images", group=images, type=number_in(COUNT), default=2048, metavar="N",
        help="images by whose features importance is estimated",
    )  # fmt: skip
    work = parser.add_argument_group("computation")
    parser.add_option(
        "--batch_size", group=work, type=number_in(COUNT), default=32, metavar="N", help="images of one pass"
    )
    parser.add_option(
        "--num_workers", group=work, type=number_in(WHOLE), default=0, metavar="N", help="processes that decode images"
    )
    parser.add_option(
        "--seed", group=work, type=number_in(SEED), default=0, metavar="N", help="seed of the sample of images"
    )
    parser.add_token(work)
    return parser
