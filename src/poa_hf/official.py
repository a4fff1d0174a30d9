"""The authors' checkpoints (https://github.com/Qichuzyy/POA): their parameter names, read into ours."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .models.configuration_poa import PoaConfig
from .models.modeling_poa_pretraining import PoaForPreTraining

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
        ValueError: If a name is unknown, a parameter of the backbone is missing, or a shape is not the configuration's.
    """
    weights = path_or_state_dict
    if isinstance(weights, str | Path):
        weights = _read(Path(weights))
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()
    ):
        raise ValueError(
            "The checkpoint is not a mapping of names to tensors: give the teacher's or student's weights."
        )
    # a training checkpoint holds both branches under one key
    branch = next((b for b in ("teacher.", "student.") if any(name.startswith(b) for name in weights)), "")
    weights = {n.removeprefix(branch): tensor for n, tensor in weights.items() if n.startswith(branch)}
    model_type = config.backbone_config.model_type
    names_of = {name: parameter_names(name, model_type) for name in weights}
    if unknown := [name for name, ours in names_of.items() if ours is None]:
        raise ValueError(
            f"{len(unknown)} names are not those of the authors' {model_type} ({_some(unknown)}): "
            "give the teacher's or the student's weights from a checkpoint of this family."
        )
    model = PoaForPreTraining(config)
    ours = dict(model.named_parameters())
    given = {part for names in names_of.values() for part in names or ()}
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


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"The checkpoint {path} does not exist.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise almost anything
        raise ValueError(
            f"{path} holds more than tensors, or is damaged: give a checkpoint that torch.load reads with "
            "weights_only=True."
        ) from error
    for key in ("teacher", "student", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    return content


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
