"""`poa convert`: a checkpoint of the authors' code as the model of a finished run."""

from __future__ import annotations

import shlex
from pathlib import Path

from ..formatting import printable
from .configs import find_config
from .main import quiet_libraries
from .parser import CommandParser


def convert(argv: list[str]) -> None:
    """Run `poa convert teacher_checkpoint.pth --family vit --output DIR`."""
    parser = CommandParser(
        prog="poa convert",
        description="Write a checkpoint of the authors' code as the model of a finished run, which every other command "
        "takes.",
        epilog="Sizes are read from the weights; what weights do not show is as published, or as --config says.",
    )
    parser.add_option("checkpoint", type=Path, help="the authors' teacher_checkpoint.pth, or a .safetensors file")
    parser.add_option(
        "--family", required=True, choices=["vit", "swin", "resnet"], help="what the checkpoint was trained as"
    )
    parser.add_option("--output", required=True, type=Path, metavar="DIR", help="folder of the converted model")
    parser.add_option(
        "--config",
        metavar="NAME_OR_FILE",
        help="recipe by name, or YAML file with a `model` section, as poa pretrain takes it",
    )
    parser.add_option("--overwrite", action="store_true", help="replace a converted model that is already there")
    args = parser.parse_args(argv)
    quiet_libraries()
    from ..models.from_fields import read_model_section
    from ..official.convert import FILES, convert_checkpoint
    from ..publishing.export import check_output

    check_output(args.output, args.overwrite, replaceable=FILES, content="a converted model")
    section = read_model_section(find_config(args.config)) if args.config else None
    conversion = convert_checkpoint(args.checkpoint, args.family, args.output, section, args.config or "")
    print(printable(str(conversion)))
    space = conversion.config.backbone_config.space
    size = next(iter(space.named), str(space.smallest))
    output = shlex.quote(str(args.output))
    print(f"written to {args.output}; next: poa extract {output} --size {size} --output {output}-{size}")
