"""The ViTs as timm's: DINOv2 with and without registers as its `VisionTransformer`, DINOv3 as its `Eva`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Dinov2Model, Dinov2WithRegistersModel, DINOv3ViTModel

from .timm_parts import TimmModel, check_fields, joined, patch_side, ratio, renamed

_PATCHES = {"first_conv": "patch_embed.proj", "classifier": "head"}


def dinov2_in_timm(model: Dinov2Model | Dinov2WithRegistersModel, side: int) -> TimmModel:
    """Convert a DINOv2, with or without registers, for images of `side` pixels.

    timm resizes position embeddings in another way than transformers, so they are resized here, as transformers does at
    each call, and the result takes images of this size only.

    Raises:
        ValueError: If timm has no such activation or epsilon, or patches do not fill such images.
    """
    config = model.config
    gated = config.use_swiglu_ffn
    check_fields(
        config, "DINOv2", {"layer_norm_eps": 1e-6} if gated else {"layer_norm_eps": 1e-6, "hidden_act": "gelu"}
    )
    patch_size = patch_side(config, side)
    tensors = model.state_dict()
    registers = tensors.get("embeddings.register_tokens", torch.empty(1, 0, config.hidden_size))
    positions = _position_embeddings(model, side, patch_size)
    class_token = tensors["embeddings.cls_token"]
    if registers.shape[1]:
        class_token, positions = class_token + positions[:, :1], positions[:, 1:]
    hidden = tensors["encoder.layer.0.mlp.gate_proj.bias" if gated else "encoder.layer.0.mlp.fc1.bias"].shape[0]
    model_args: dict[str, Any] = {
        **_size(config.hidden_size, config.num_hidden_layers, config.num_attention_heads, patch_size, side),
        "mlp_ratio": ratio(2 * hidden if gated else hidden, config.hidden_size),
        "qkv_bias": config.qkv_bias,
        "reg_tokens": registers.shape[1],
        "no_embed_class": registers.shape[1] > 0,
    }
    converted = {"cls_token": class_token, "pos_embed": positions}
    if registers.shape[1]:
        converted["reg_token"] = registers
    converted |= renamed(tensors, {"embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm": "norm"})
    for index in range(config.num_hidden_layers):
        old, new = f"encoder.layer.{index}.", f"blocks.{index}."
        converted |= _block(tensors, old, new)
        converted |= joined(tensors, [f"{old}attention.{part}_proj" for part in "qkv"], f"{new}attn.qkv")
        converted |= {f"{new}ls{i}.gamma": tensors[f"{old}layer_scale{i}.lambda1"] for i in (1, 2)}
        if gated:
            converted |= joined(tensors, [f"{old}mlp.gate_proj", f"{old}mlp.up_proj"], f"{new}mlp.fc1")
    # timm's names are those of published sizes; only the giant one has gated layers
    architecture = "vit_giant_patch14_dinov2" if gated else "vit_small_patch14_dinov2"
    return TimmModel(
        architecture, model_args, converted, config.hidden_size, "token", {"fixed_input_size": True, **_PATCHES}
    )


def dinov3_in_timm(model: DINOv3ViTModel, side: int) -> TimmModel:
    """Convert a DINOv3 ViT for images of `side` pixels; it takes images of other sizes too, as here.

    Raises:
        ValueError: If timm has no such activation, epsilon or bias of keys, or patches do not fill such images.
    """
    config = model.config
    gated = config.use_gated_mlp
    fixed = {"layer_norm_eps": 1e-5, "hidden_act": "silu" if gated else "gelu", "key_bias": False}
    check_fields(config, "DINOv3", fixed)
    patch_size = patch_side(config, side)
    tensors = _with_biases(model)
    model_args: dict[str, Any] = {
        **_size(config.hidden_size, config.num_hidden_layers, config.num_attention_heads, patch_size, side),
        "mlp_ratio": ratio(config.intermediate_size, config.hidden_size),
        "swiglu_mlp": gated,
        "num_reg_tokens": config.num_register_tokens,
        "rope_temperature": config.rope_theta,
    }
    converted = {"cls_token": tensors["embeddings.cls_token"]}
    if config.num_register_tokens:
        converted["reg_token"] = tensors["embeddings.register_tokens"]
    converted |= renamed(tensors, {"embeddings.patch_embeddings": "patch_embed.proj", "norm": "norm"})
    for index in range(config.num_hidden_layers):
        old, new = f"model.layer.{index}.", f"blocks.{index}."
        converted |= _block(tensors, old, new)
        converted[f"{new}attn.qkv.weight"] = torch.cat(
            [tensors[f"{old}attention.{part}_proj.weight"] for part in "qkv"]
        )
        converted |= {f"{new}attn.{part}_bias": tensors[f"{old}attention.{part}_proj.bias"] for part in "qv"}
        converted |= {f"{new}gamma_{i}": tensors[f"{old}layer_scale{i}.lambda1"] for i in (1, 2)}
        if gated:
            converted |= joined(tensors, [f"{old}mlp.gate_proj", f"{old}mlp.up_proj"], f"{new}mlp.fc1")
        else:
            converted |= renamed(tensors, {f"{old}mlp.up_proj": f"{new}mlp.fc1"})
    return TimmModel(
        "vit_small_patch16_dinov3_qkvb",
        model_args,
        converted,
        config.hidden_size,
        "token",
        {"fixed_input_size": False, **_PATCHES},
    )


def _size(width: int, depth: int, heads: int, patch_size: int, side: int) -> dict[str, Any]:
    return {
        "img_size": side,
        "patch_size": patch_size,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "global_pool": "token",
    }


def _block(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """Return what the blocks of all ViTs have, under timm's names."""
    names = {"norm1": "norm1", "norm2": "norm2", "attention.o_proj": "attn.proj", "mlp.fc1": "mlp.fc1"}
    names |= {"mlp.fc2": "mlp.fc2", "mlp.down_proj": "mlp.fc2"}
    return renamed(tensors, {old + name: new + timm_name for name, timm_name in names.items()})


def _position_embeddings(model: Dinov2Model | Dinov2WithRegistersModel, side: int, patch_size: int) -> Tensor:
    """Return the position embeddings (1, 1 + patches, D) for images of `side` pixels."""
    patches = (side // patch_size) ** 2
    tokens = torch.empty(1, 1 + patches, model.config.hidden_size)  # only the shape is read
    with torch.no_grad():
        return model.embeddings.interpolate_pos_encoding(tokens, side, side).clone()


def _with_biases(model: DINOv3ViTModel) -> dict[str, Tensor]:
    """Return the weights of a DINOv3 ViT, with zeros for the biases that timm always has and the model does not."""
    tensors = model.state_dict()
    for name, weight in list(tensors.items()):
        if name.endswith("_proj.weight") and not name.endswith("k_proj.weight"):
            tensors.setdefault(name.removesuffix("weight") + "bias", weight.new_zeros(weight.shape[0]))
    return tensors
