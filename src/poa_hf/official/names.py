"""Parameter names of the authors' code (https://github.com/Qichuzyy/POA) and the names that they have in poa_hf."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

_VIT_BLOCK = r"backbone\.blocks\.(?:\d+\.)?(\d+)\."  # FSDP runs nest blocks: blocks.<chunk>.<block>
_SWIN_BLOCK = r"backbone\.stages\.(\d+)\.blocks\.(\d+)\."
_RESNET_BLOCK = r"backbone\.layer(\d+)\.layers\.(\d+)\."
_Rule = tuple[str, str | Callable[[re.Match[str]], str] | None]
# The authors' name -> ours, as a template or a function of the match. {q,k,v} splits one of their tensors into three of
# ours; None marks tensors that no computation uses.
_BACKBONES: dict[str, list[_Rule]] = {
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
        (_SWIN_BLOCK + r"attn\.w_msa\.relative_position_index", None),  # stock Swin computes the same one
        (_SWIN_BLOCK + r"ffn\.(fc[12])\.linear\.(\w+)", r"encoder.layers.\1.blocks.\2.mlp.\3.\4"),
        (
            r"backbone\.stages\.(\d+)\.downsample\.(norm|reduction)\.(?:norm|linear)\.(\w+)",
            r"encoder.layers.\1.downsample.\2.\3",
        ),
        (r"backbone\.norm[012]\.norm\.\w+", None),  # norms of the first three stages, for dense tasks only
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
_HEADS: list[_Rule] = [
    (r"dino_head\.mlp(\d+)\.(\d+)\.(?:linear\.)?(weight|bias)", r"\1.mlp.\2.\3"),
    (r"dino_head\.last_layer(\d+)\.(weight_[gv])", r"\1.prototypes.\2"),
]


def _resnet_name(match: re.Match[str], kind: str) -> str:
    stage, block, number, parameter = match.groups()
    layer = "shortcut" if "downsample" in match.string else f"layer.{int(number) - 1}"
    return f"encoder.stages.{int(stage) - 1}.layers.{block}.{layer}.{kind}.{parameter}"


def parameter_names(official_name: str, model_type: str) -> list[str] | None:
    """Translate a parameter name of the authors' code into ours.

    Args:
        official_name: A name such as `backbone.blocks.0.attn.qkv.linear.weight`.
        model_type: The elastic family, such as `poa_vit`.

    Returns:
        The names in `PoaForPreTraining`: three where the authors stack queries, keys and values along the first axis,
        none (an empty list) for a tensor that no computation uses. None for a name that the family does not have.
    """
    for prefix, rules in (("student", _BACKBONES[model_type]), ("student_head", _HEADS)):
        for pattern, replacement in rules:
            match = re.fullmatch(pattern, official_name)
            if match is None:
                continue
            if replacement is None:
                return []
            name = f"{prefix}.{_expand(match, replacement)}"
            if "{q,k,v}" not in name:
                return [name]
            return [name.replace("{q,k,v}", part) for part in "qkv"]
    return None


def check_family(model_type: str) -> None:
    """Raise ValueError for an elastic family that the authors' code does not have."""
    if model_type not in _BACKBONES:
        raise ValueError(
            f"The authors' code has no {model_type!r}, but {', '.join(_BACKBONES)}: give a backbone of these, or "
            "weights of another source."
        )


def is_official_name(name: str) -> bool:
    """Tell whether any family of the authors' code has a parameter of this name."""
    return any(parameter_names(name, model_type) is not None for model_type in _BACKBONES)


def likely_family(names: Iterable[str]) -> str | None:
    """Return the model type whose backbone has most of these names, or None if no family has any of them.

    The plainer names that the authors' extractor writes count as well.
    """
    names = list(names)
    counts = {model_type: sum(_plain_name(name, model_type) is not None for name in names) for model_type in _BACKBONES}
    family = max(counts, key=lambda model_type: counts[model_type])
    return family if counts[family] else None


def check_is_elastic(names: Iterable[str], model_type: str) -> None:
    """Refuse the names of a single sub-network, as the authors' extractor writes it.

    The extractor omits the final LayerNorm, which ViT and Swin need to compute their features. A ResNet has no final
    norm, so it is recognised by its plain parameter names.

    Raises:
        ValueError: If the names are those of an extracted sub-network.
    """
    names = list(names)
    if any(name.startswith("dino_head.") for name in names):
        return
    plain_names = [_plain_name(name, model_type) for name in names]
    if None in plain_names:
        return
    advice = "convert the teacher_checkpoint.pth that it was cut from, and extract sizes from that with poa extract."
    if model_type != "poa_resnet" and not any((name or "").startswith("layernorm.") for name in plain_names):
        raise ValueError(
            "This is one sub-network as the authors' extractor writes it, without the final LayerNorm, and its "
            f"features cannot be computed without that: {advice}"
        )
    if any(parameter_names(name, model_type) is None for name in names):
        raise ValueError(f"This is one network under plain names, not an elastic one that holds many sizes: {advice}")


def _plain_name(name: str, model_type: str) -> str | None:
    """Return our name for an official one, with or without `backbone.` and the suffixes of elastic layers."""
    for pattern, replacement in _BACKBONES[model_type]:
        for part in ("linear", "norm", "conv", "(?:norm|linear)"):
            pattern = pattern.replace(rf"\.{part}\.", rf"\.(?:{part}\.)?")
        if match := re.fullmatch(pattern.replace(r"backbone\.", r"(?:backbone\.)?"), name):
            return _expand(match, replacement or "")
    return None


def _expand(match: re.Match[str], replacement: str | Callable[[re.Match[str]], str]) -> str:
    return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
