"""The authors' checkpoints (https://github.com/Qichuzyy/POA): their parameter names, read into ours."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..models.configuration_poa import PoaConfig
from ..models.modeling_poa_pretraining import PoaForPreTraining
from .files import read_weights

logger = logging.getLogger(__name__)

_VIT_BLOCK = r"backbone\.blocks\.(?:\d+\.)?(\d+)\."  # their FSDP runs nest blocks in chunks: blocks.<chunk>.<block>
_SWIN_BLOCK = r"backbone\.stages\.(\d+)\.blocks\.(\d+)\."
_RESNET_BLOCK = r"backbone\.layer(\d+)\.layers\.(\d+)\."
# Their name -> ours, a template or a function of the match; {q,k,v} splits one of their tensors into three of ours, and
# None is for what no computation uses.
_BACKBONES: dict[str, list[tuple[str, str | Callable[[re.Match], str] | None]]] = {
    "poa_vit": [
        (r"backbone\.cls_token", r"embeddings.cls_token"),
        (r"backbone\.pos_embed", r"embeddings.position_embeddings"),
        (r"backbone\.mask_token", r"embeddings.mask_token"),
        (r"backbone\.patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
        (_VIT_BLOCK + r"(norm[12])\.norm\.(\w+)", r"encoder.layer.\1.\2.\3"),
        (_VIT_BLOCK + r"attn\.qkv\.linear\.(\w+)", r"encoder.layer.\1.attention.{q,k,v}_proj.\2"),
        (_VIT_BLOCK + r"attn\.proj\.linear\.(\w+)", r"encoder.layer.\1.attention.o_proj.\2"),
        (_VIT_BLOCK + r"ls([12])\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
        (_VIT_BLOCK + r"mlp\.(fc[12])\.linear\.(\w+)", r"encoder.layer.\1.mlp.\2.\3"),
        (r"backbone\.norm\.norm\.(\w+)", r"layernorm.\1"),
    ],
    "poa_swin": [
        (r"backbone\.mask_token", r"embeddings.mask_token"),
        (r"backbone\.patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
        (r"backbone\.patch_embed\.norm\.norm\.(\w+)", r"embeddings.norm.\1"),
        (_SWIN_BLOCK + r"norm1\.norm\.(\w+)", r"encoder.layers.\1.blocks.\2.layernorm_before.\3"),
        (_SWIN_BLOCK + r"norm2\.norm\.(\w+)", r"encoder.layers.\1.blocks.\2.layernorm_after.\3"),
        (_SWIN_BLOCK + r"attn\.w_msa\.qkv\.linear\.(\w+)", r"encoder.layers.\1.blocks.\2.attention.{q,k,v}_proj.\3"),
        (_SWIN_BLOCK + r"attn\.w_msa\.proj\.linear\.(\w+)", r"encoder.layers.\1.blocks.\2.attention.o_proj.\3"),
        (
            _SWIN_BLOCK + r"attn\.w_msa\.(relative_position_bias_table)",
            r"encoder.layers.\1.blocks.\2.attention.relative_position_bias.\3",
        ),
        (_SWIN_BLOCK + r"attn\.w_msa\.relative_position_index", None),  # stock Swin makes its own, which is the same
        (_SWIN_BLOCK + r"ffn\.(fc[12])\.linear\.(\w+)", r"encoder.layers.\1.blocks.\2.mlp.\3.\4"),
        (
            r"backbone\.stages\.(\d+)\.downsample\.(norm|reduction)\.(?:norm|linear)\.(\w+)",
            r"encoder.layers.\1.downsample.\2.\3",
        ),
        (r"backbone\.norm[012]\.norm\.\w+", None),  # of the first three stages, which only dense tasks would read
        (r"backbone\.norm3\.norm\.(\w+)", r"layernorm.\1"),
    ],
    "poa_resnet": [
        (r"backbone\.mask_token", r"mask_token"),
        (r"backbone\.conv1\.weight", r"embedder.embedder.convolution.weight"),
        (r"backbone\.norm1\.(\w+)", r"embedder.embedder.normalization.\1"),
        (_RESNET_BLOCK + r"conv(\d)\.conv\.(weight)", lambda match: _resnet_name(match, "convolution")),
        (_RESNET_BLOCK + r"norm(\d)\.(\w+)", lambda match: _resnet_name(match, "normalization")),
        (_RESNET_BLOCK + r"downsample\.(0)\.(weight)", lambda match: _resnet_name(match, "convolution")),
        (_RESNET_BLOCK + r"downsample\.(1)\.(\w+)", lambda match: _resnet_name(match, "normalization")),
    ],
}
_HEADS = [
    (r"dino_head\.mlp(\d+)\.(\d+)\.(?:linear\.)?(weight|bias)", r"\1.mlp.\2.\3"),
    (r"dino_head\.last_layer(\d+)\.(weight_[gv])", r"\1.prototypes.\2"),
]


# Parts that wrappers of PyTorch put into names: DDP, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_BRANCHES = ("teacher.", "student.")
# What a file may hold beside the weights of one branch, and why it is not needed.
_NOT_NEEDED = [
    (r"student(\..*)?", "the teacher's weights are taken"),
    (r"(dino_loss|ibot_patch_loss)\..*", "statistics of a loss, which start anew"),
    (r"optimizer|.*scheduler|.*scaler|epoch|iteration|step|args|config|cfg", "of their training, no weights"),
]


def _resnet_name(match: re.Match, kind: str) -> str:
    stage, block, number, parameter = match.groups()
    layer = "shortcut" if "downsample" in match.string else f"layer.{int(number) - 1}"
    return f"encoder.stages.{int(stage) - 1}.layers.{block}.{layer}.{kind}.{parameter}"


def parameter_names(official_name: str, model_type: str) -> list[str] | None:
    """Our names, in `PoaForPreTraining`, of what the authors call `official_name`: three where their tensor stacks
    queries, keys and values along the first axis, none for what no computation uses. None for a name that is not of
    this family."""
    for prefix, rules in (("student", _BACKBONES[model_type]), ("student_head", _HEADS)):
        for pattern, replacement in rules:
            if match := re.fullmatch(pattern, official_name):
                if replacement is None:
                    return []
                name = replacement(match) if callable(replacement) else match.expand(replacement)
                name = f"{prefix}.{name}"
                if "{q,k,v}" not in name:
                    return [name]
                return [name.replace("{q,k,v}", part) for part in "qkv"]
    return None


@dataclass(frozen=True)
class OfficialWeights:
    """One branch's weights under the authors' names (`backbone.*`, `dino_head.*`), and what a file held beside them,
    each with the reason why it is not needed; None where there is none."""

    tensors: dict[str, Tensor]
    not_needed: dict[str, str | None]


def select_weights(weights: Mapping[str, Tensor], beside: Iterable[str] = ()) -> OfficialWeights:
    """The teacher's weights, or else the student's: what wrappers put into names is removed, and the names of a
    backbone alone get their `backbone.`. `beside` are other keys of the file. ValueError if two names become one."""
    named: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        name = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if name in named:
            raise ValueError(
                f"The checkpoint holds {name} twice, with and without a wrapper's prefix: give one of them."
            )
        named[name] = tensor
    # a training checkpoint holds both branches
    branch = next((branch for branch in _BRANCHES if any(name.startswith(branch) for name in named)), "")
    tensors = {name.removeprefix(branch): tensor for name, tensor in named.items() if name.startswith(branch)}
    beside = [*beside, *(name for name in named if not name.startswith(branch))]
    bare = not any(name.startswith(("backbone.", "dino_head.")) for name in tensors)
    if bare and any(_known(f"backbone.{name}") for name in tensors):
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    reasons = {
        name: next((reason for pattern, reason in _NOT_NEEDED if re.fullmatch(pattern, name)), None) for name in beside
    }
    return OfficialWeights(tensors, reasons)


def _known(name: str) -> bool:
    return any(parameter_names(name, model_type) is not None for model_type in _BACKBONES)


def likely_family(names: Iterable[str]) -> str | None:
    """The model type whose backbone has most of these names, also in the plainer ones of an extracted sub-network."""
    names = list(names)
    found = {kind: sum(_plain_name(name, kind) is not None for name in names) for kind in _BACKBONES}
    family = max(found, key=found.get)
    return family if found[family] else None


def check_is_elastic(names: Iterable[str], model_type: str) -> None:
    """ValueError if the names are those of one sub-network that the authors' extractor wrote.

    It leaves out the final LayerNorm, which ViT and Swin compute their features with. (A ResNet has none: its file is
    told by its names, where they are the plain ones.)
    """
    names = list(names)
    if any(name.startswith("dino_head.") for name in names):
        return
    ours = [_plain_name(name, model_type) for name in names]
    if None in ours:
        return
    instead = "convert the teacher_checkpoint.pth that it was cut from, and take sizes from that with poa extract."
    if model_type != "poa_resnet" and not any(name.startswith("layernorm.") for name in ours):
        raise ValueError(
            "This is one sub-network as the authors' extractor writes it, without the final LayerNorm, and its "
            f"features cannot be had without that: {instead}"
        )
    if any(parameter_names(name, model_type) is None for name in names):
        raise ValueError(f"This is one network under plain names, not an elastic one that holds many sizes: {instead}")


def _plain_name(name: str, model_type: str) -> str | None:
    """The first of our names for one of theirs, with or without `backbone.` and the names of their elastic layers."""
    for pattern, replacement in _BACKBONES[model_type]:
        for part in ("linear", "norm", "conv", "(?:norm|linear)"):
            pattern = pattern.replace(rf"\.{part}\.", rf"\.(?:{part}\.)?")
        if match := re.fullmatch(pattern.replace(r"backbone\.", r"(?:backbone\.)?"), name):
            if callable(replacement):
                return replacement(match)
            return match.expand(replacement or "")
    return None


def to_our_layout(official_name: str, tensor: Tensor) -> Tensor:
    """Their tensor with its entries in our order: of the four neighbours that Swin's patch merging puts side by side in
    the last axis, the middle two change places. Its own inverse."""
    if re.match(r"backbone\.stages\.\d+\.downsample\.", official_name) and tensor.shape[-1:].numel() % 4 == 0:
        return tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].flatten(-2)
    return tensor


def load_official_checkpoint(
    path_or_state_dict: str | Path | Mapping[str, Tensor], config: PoaConfig
) -> PoaForPreTraining:
    """A model with the authors' student or teacher weights, in both our student and our teacher.

    Reads a `.pth` file of theirs (only tensors; the weights at the top or under `teacher` or `student`, the teacher's
    first), a `.safetensors` file, or a mapping of their names (`backbone.*`, `dino_head.*`). Heads that it lacks stay
    as initialised.

    One thing is not the authors': their Swin normalises the patch embedding over its full width before a sub-network
    takes its part, ours (which stock Swin can hold) over the sub-network's own. So sizes below the full width come out
    slightly different from what was trained; a warning says so.

    Raises:
        ValueError: If a name is unknown, a parameter of the backbone is missing or given twice, a shape is not the
            configuration's, or a file cannot be read (`read_weights`).
    """
    weights = path_or_state_dict
    if isinstance(weights, str | Path):
        weights = read_weights(weights).weights
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()
    ):
        raise ValueError(
            "The checkpoint is not a mapping of names to tensors: give the teacher's or student's weights."
        )
    weights = select_weights(weights).tensors
    model_type = config.backbone_config.model_type
    names_of = {name: parameter_names(name, model_type) for name in weights}
    if unknown := [name for name, ours in names_of.items() if ours is None]:
        raise ValueError(
            f"{len(unknown)} names are not those of the authors' {model_type} ({_some(unknown)}): "
            "give the teacher's or the student's weights from a checkpoint of this family."
        )
    if twice := [name for name, count in Counter(n for names in names_of.values() for n in names).items() if count > 1]:
        raise ValueError(f"The checkpoint gives {len(twice)} parameters twice ({_some(twice)}).")
    if integers := [name for name, names in names_of.items() if names and not weights[name].is_floating_point()]:
        raise ValueError(
            f"{len(integers)} weights are not floating-point numbers ({_some(integers)}): give a checkpoint that is "
            "not quantised."
        )
    model = PoaForPreTraining(config)
    ours = dict(model.named_parameters())
    given = {part for names in names_of.values() for part in names}
    started = tuple(f"student_head.{index}." for index in {n.split(".")[1] for n in given if "_head." in n})
    missing = {name for name in ours if name.startswith(("student.", *started))}
    with torch.no_grad():
        for official_name, names in names_of.items():
            tensor = to_our_layout(official_name, weights[official_name])
            parts = tensor.chunk(len(names)) if len(names) > 1 and tensor.ndim else [tensor]
            for name, part in zip(names, parts, strict=False):
                # a mask token's axes of size 1 may be others
                if name not in ours or ours[name].squeeze().shape != part.squeeze().shape:
                    expected = tuple(ours[name].shape) if name in ours else "nothing"
                    raise ValueError(
                        f"{official_name} has shape {tuple(part.shape)} where this configuration has {expected}: "
                        "give the configuration that the checkpoint was trained with."
                    )
                ours[name].copy_(part.reshape(ours[name].shape))
                missing.discard(name)
    if missing:
        raise ValueError(f"The checkpoint lacks {len(missing)} parameters ({_some(sorted(missing))}).")
    model.update_teacher(momentum=0.0)
    space = config.backbone_config.space
    if model_type == "poa_swin" and len(space.widths) > 1:
        logger.warning(
            "Sizes below the full width (%d) differ slightly from the authors': their Swin normalises the patch "
            "embedding over the full width before it is cut, which no stock Swin can hold.",
            space.full.width,
        )
    return model


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
