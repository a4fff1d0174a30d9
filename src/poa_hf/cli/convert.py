"""`poa convert`: a checkpoint of the authors' code as the model of a finished run."""

from __future__ import annotations

import shlex
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from ..data.processor import evaluation_processor
from ..models.configuration_poa import PoaConfig
from ..models.from_fields import read_model_section
from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..official.config import checkpoint_config
from ..official.files import read_weights
from ..official.names import check_is_elastic, likely_family, parameter_names
from ..official.weights import load_official_checkpoint, select_weights
from ..publishing.export import check_output
from ..runs.atomic import write_json, written_folder
from ..runs.layout import CONFIG, CONVERSION, EVALUATIONS, PROCESSOR, WEIGHTS
from .parser import CommandParser

_FAMILIES = ("vit", "swin", "resnet")
_FILES = {CONFIG, WEIGHTS, PROCESSOR, EVALUATIONS, CONVERSION}


def convert(argv: list[str]) -> None:
    """`poa convert teacher_checkpoint.pth --family vit --output DIR`"""
    parser = CommandParser(
        prog="poa convert",
        description="Write a checkpoint of the authors' code as the model of a finished run, for the other commands.",
        epilog="Sizes are read from the weights; what these do not show is as published, or as --config says.",
    )
    parser.add_argument("checkpoint", type=Path, help="the authors' teacher_checkpoint.pth, or a .safetensors file")
    parser.add_argument("--family", required=True, choices=_FAMILIES, help="what the checkpoint was trained as")
    parser.add_argument("--output", required=True, type=Path, help="folder of the converted model")
    parser.add_argument("--config", type=Path, help="YAML file with a `model` section, as of poa pretrain")
    parser.add_argument("--overwrite", action="store_true", help="replace a converted model that is there already")
    args = parser.parse_args(argv)
    check_output(args.output, args.overwrite, files=_FILES, what="a converted model")
    given = read_model_section(args.config) if args.config else None
    model_type = f"poa_{args.family}"
    file = read_weights(args.checkpoint)
    selected = select_weights(file.weights, file.other_keys)
    not_read = _check(args.checkpoint, selected.tensors, selected.not_needed, model_type)
    config = checkpoint_config(selected.tensors, model_type, given, str(args.config))
    model = load_official_checkpoint(selected.tensors, config).eval()
    has_heads = any(name.startswith("dino_head.") for name in selected.tensors)
    record = {
        "source": args.checkpoint.name,
        "family": args.family,
        "heads": "read" if has_heads else "initialised",
        "not_read": not_read,
    }
    _write(model, record, args.output)
    print(_summary(args, selected.tensors, config, has_heads, not_read))


def _check(path: Path, tensors: dict[str, Tensor], beside: dict[str, str | None], model_type: str) -> dict[str, str]:
    """Why each key that is not read is not, by key.

    Raises:
        ValueError: For weights of another family or of one size, keys that should be read but are unknown, and numbers
            that are not finite.
    """
    if any("flat_param" in name for name in tensors):
        raise ValueError(
            f"{path} is one process's part of a training state: give the teacher_checkpoint.pth beside it."
        )
    found = likely_family(tensors)
    if found is None:
        names = ", ".join([*tensors][:2])
        raise ValueError(f"{path} has no weights under the authors' names ({names or 'no weights'}): give theirs.")
    if found != model_type:
        family, found = model_type.removeprefix("poa_"), found.removeprefix("poa_")
        raise ValueError(f"{path} looks like a {found} of the authors' code, not a {family}: give --family {found}.")
    try:
        check_is_elastic(tensors, model_type)
    except ValueError as error:
        raise ValueError(f"{path} cannot be converted. {error}") from None
    names_of = {name: parameter_names(name, model_type) for name in tensors}
    unknown = [name for name, names in names_of.items() if names is None]
    unknown += [name for name, reason in beside.items() if reason is None]
    if unknown:
        raise ValueError(
            f"{path} has {len(unknown)} keys that are not of the authors' {model_type.removeprefix('poa_')} and would "
            f"not be read: {', '.join(unknown)}."
        )
    if broken := [name for name, names in names_of.items() if names and not _is_sound(tensors[name])]:
        raise ValueError(
            f"{path} has {len(broken)} weights that are not plain tensors of finite numbers ({broken[0]}, ...): give "
            "another checkpoint of that run."
        )
    unused = {name: "no feature is computed with it" for name, names in names_of.items() if names == []}
    return {**{name: reason for name, reason in beside.items() if reason}, **unused}


def _is_sound(tensor: Tensor) -> bool:
    plain = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized
    return plain and bool(tensor.float().isfinite().all())


def _write(model: PoaForPreTraining, record: dict, output: Path) -> None:
    with written_folder(output.absolute()) as folder:
        model.save_pretrained(folder)
        evaluation_processor(model.config.backbone_config.image_size).save_pretrained(folder)
        write_json(folder / CONVERSION, record)


def _summary(args, tensors: dict[str, Tensor], config: PoaConfig, has_heads: bool, not_read: dict[str, str]) -> str:
    backbone = config.backbone_config
    space = backbone.space
    counts = {
        part: sum(tensor.numel() for name, tensor in tensors.items() if name.startswith(part) and name not in not_read)
        for part in ("backbone.", "dino_head.")
    }
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.is_floating_point()}
    said_by = args.config or "the published configuration, as weights do not show it (else give --config)"
    prototypes = " + ".join(map(str, config.num_prototypes))
    lines = [
        f"{args.checkpoint}: {args.family} of {counts['backbone.']:,} parameters ({', '.join(sorted(dtypes))})",
        f"sizes: {len(space)}, from {space.smallest} to {space.full}; smallest size and steps are those of {said_by}",
        f"images: {backbone.image_size} pixels",
    ]
    if has_heads:
        lines.append(
            f"heads: {len(config.num_prototypes)} read ({prototypes} prototypes), {counts['dino_head.']:,} parameters"
        )
    else:
        lines.append(
            f"heads: none in the file, so {len(config.num_prototypes)} are new ({prototypes} prototypes): extracted "
            "sizes have none, but pre-training that goes on from here starts with untrained heads"
        )
    by_reason = defaultdict(list)
    for name, reason in not_read.items():
        by_reason[reason].append(name)
    for reason, names in by_reason.items():
        lines.append(f"not read, {reason}: {', '.join(names)}")
    if not not_read:
        lines.append("not read: nothing")
    size = next(iter(space.named), str(space.smallest))
    output = shlex.quote(str(args.output))
    lines.append(f"written to {args.output}; next: poa extract {output} --size {size} --output {output}-{size}")
    return "\n".join(lines)
