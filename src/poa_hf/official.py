"""The authors' checkpoints (https://github.com/Qichuzyy/POA): their parameter names, read into ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .models.configuration_poa import PoaConfig
from .models.modeling_poa_pretraining import PoaForPreTraining

_VIT_BLOCK = r"backbone\.blocks\.(?:\d+\.)?(\d+)\."  # their FSDP runs nest blocks in chunks: blocks.<chunk>.<block>
# their name -> ours; {q,k,v} splits one of their tensors into three of ours
_BACKBONES = {
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
}
_HEADS = [
    (r"dino_head\.mlp(\d+)\.(\d+)\.(?:linear\.)?(weight|bias)", r"\1.mlp.\2.\3"),
    (r"dino_head\.last_layer(\d+)\.(weight_[gv])", r"\1.prototypes.\2"),
]


def parameter_names(official_name: str, model_type: str) -> list[str]:
    """Our names, in `PoaForPreTraining`, of what the authors call `official_name`: three where their tensor stacks
    queries, keys and values along the first axis, none for a name that is not of this family."""
    for prefix, rules in (("student", _BACKBONES[model_type]), ("student_head", _HEADS)):
        for pattern, replacement in rules:
            if match := re.fullmatch(pattern, official_name):
                name = f"{prefix}.{match.expand(replacement)}"
                if "{q,k,v}" not in name:
                    return [name]
                return [name.replace("{q,k,v}", part) for part in "qkv"]
    return []


def load_official_checkpoint(
    path_or_state_dict: str | Path | Mapping[str, Tensor], config: PoaConfig
) -> PoaForPreTraining:
    """A model with the authors' student or teacher weights, in both our student and our teacher.

    Reads a `.pth` file of theirs (only tensors; the weights at the top or under `teacher` or `student`, the teacher's
    first), a `.safetensors` file, or a mapping of their names (`backbone.*`, `dino_head.*`). Heads that it lacks stay
    as initialised.

    Raises:
        ValueError: If a name is unknown, a parameter of the backbone is missing, or a shape is not the configuration's.
    """
    weights = path_or_state_dict
    if isinstance(weights, str | Path):
        weights = _read(Path(weights))
    if not isinstance(weights, Mapping) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ValueError(
            "The checkpoint is not a mapping of names to tensors: give the teacher's or student's weights."
        )
    # a training checkpoint holds both branches under one key
    branch = next((b for b in ("teacher.", "student.") if any(name.startswith(b) for name in weights)), "")
    weights = {n.removeprefix(branch): tensor for n, tensor in weights.items() if n.startswith(branch)}
    model_type = config.backbone_config.model_type
    if unknown := [name for name in weights if not parameter_names(name, model_type)]:
        raise ValueError(
            f"{len(unknown)} names are not those of the authors' {model_type} ({_some(unknown)}): "
            "give the teacher's or the student's weights from a checkpoint of this family."
        )
    model = PoaForPreTraining(config)
    ours = dict(model.named_parameters())
    given = {part for name in weights for part in parameter_names(name, model_type)}
    started = tuple(f"student_head.{index}." for index in {n.split(".")[1] for n in given if "_head." in n})
    missing = {name for name in ours if name.startswith(("student.", *started))}
    with torch.no_grad():
        for official_name, tensor in weights.items():
            names = parameter_names(official_name, model_type)
            parts = tensor.chunk(len(names)) if len(names) > 1 and tensor.ndim else [tensor]
            for name, part in zip(names, parts, strict=False):
                if name not in ours or ours[name].shape != part.shape:
                    expected = tuple(ours[name].shape) if name in ours else "nothing"
                    raise ValueError(
                        f"{official_name} has shape {tuple(part.shape)} where this configuration has {expected}: "
                        "give the configuration that the checkpoint was trained with."
                    )
                ours[name].copy_(part)
                missing.discard(name)
    if missing:
        raise ValueError(f"The checkpoint lacks {len(missing)} parameters ({_some(sorted(missing))}).")
    model.update_teacher(momentum=0.0)
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
