"""`poa extract`: sizes of a run's teacher as stock transformers checkpoints."""

from __future__ import annotations

from pathlib import Path

from ..ranges import COUNT
from .main import quiet_libraries
from .parser import CommandParser, number_in, words


def extract(argv: list[str]) -> None:
    """Run `poa extract RUN --size small|384x12|all --output DIR`."""
    parser = CommandParser(
        prog="poa extract", description="Write sizes of a run's teacher as stock transformers checkpoints."
    )
    parser.add_option("run", help="output_dir of a run, one of its checkpoints, or any saved PoaForPreTraining")
    parser.add_option(
        "--size", required=True, several=True, type=words, metavar="SIZE,...",
        help="names (small) or sizes (384x12), one or several, or all",
    )  # fmt: skip
    parser.add_option(
        "--output", required=True, type=Path, metavar="DIR",
        help="folder of the model; of several models, the folder of their folders",
    )  # fmt: skip
    parser.add_option(
        "--format", help="what to write: the family's own format (dinov2, swin, gn_resnet, ...), which is the default, "
        "timm, onnx, or vit for a ViT"
    )  # fmt: skip
    parser.add_option(
        "--onnx_batch", type=number_in(COUNT), metavar="N",
        help="images that an ONNX model takes at a time; any number if not given",
    )  # fmt: skip
    parser.add_option(
        "--opset", "--onnx_opset", type=number_in(COUNT), metavar="N", help="opset of an ONNX model; 18 if not given"
    )
    parser.add_option(
        "--onnx_dtype", choices=("float32", "float16"),
        help="type of an ONNX model's weights and computation; float32 if not given",
    )  # fmt: skip
    parser.add_option("--license", "--licence", metavar="ID", help="licence of the weights: an identifier of the Hub")
    parser.add_option("--overwrite", action="store_true", help="replace models that are already there")
    args = parser.parse_args(argv)
    quiet_libraries()
    from ..publishing.card.facts import CardFacts
    from ..publishing.export import extract_all
    from ..runs.load import load_run, resolve_run, run_processor
    from ..runs.publishable import check_no_links

    check_no_links(resolve_run(args.run))  # the model's card says what the run's files hold
    model = load_run(args.run)
    space = model.config.backbone_config.space
    all_sizes = args.size == ["all"]
    sizes = list(space) if all_sizes else [space.resolve(name) for name in args.size]
    several = all_sizes or len(sizes) > 1
    outputs = {args.output / str(size) if several else args.output: size for size in sizes}
    onnx = (args.onnx_batch, args.opset, args.onnx_dtype)
    facts = CardFacts.read(model, args.run, license=args.license)
    extracted = extract_all(model, outputs, args.format, run_processor(args.run), args.overwrite, facts, *onnx)
    for output, parameters in extracted:
        print(f"{outputs[output]}: {parameters:,} parameters -> {output}")
