"""The Swin Transformer as timm's `SwinTransformer`."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import SwinModel

from .timm_parts import TimmModel, check_fields, joined, patch_side, renamed

_FIXED = {"layer_norm_eps": 1e-5, "hidden_act": "gelu", "use_absolute_embeddings": False}
_BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_TABLE = "relative_position_bias_table"


def swin_in_timm(model: SwinModel, side: int) -> TimmModel:
    """Convert a Swin for images of `side` pixels, which are the only ones that the result takes.

    Raises:
        ValueError: If timm has no such activation, epsilon or position embeddings, or would attend in other windows.
    """
    config = model.config
    check_fields(config, "Swin Transformer", _FIXED)
    patch_size = patch_side(config, side)
    _check_windows(side, patch_size, config.window_size, config.depths)
    tensors = model.state_dict()
    converted = renamed(
        tensors,
        {
            "embeddings.patch_embeddings.projection": "patch_embed.proj",
            "embeddings.norm": "patch_embed.norm",
            "layernorm": "norm",
        },
    )
    for stage, depth in enumerate(config.depths):
        old, new = f"encoder.layers.{stage}.", f"layers.{stage}."
        # timm halves the resolution before a stage, transformers after one
        merging = {f"{old}downsample.{part}": f"layers.{stage + 1}.downsample.{part}" for part in ("norm", "reduction")}
        converted |= renamed(tensors, merging)
        for index in range(depth):
            block, timm_block = f"{old}blocks.{index}.", f"{new}blocks.{index}."
            converted |= renamed(tensors, {block + name: timm_block + part for name, part in _BLOCK.items()})
            converted |= joined(tensors, [f"{block}attention.{part}_proj" for part in "qkv"], f"{timm_block}attn.qkv")
            bias = tensors[f"{block}attention.relative_position_bias.{_TABLE}"]
            converted[f"{timm_block}attn.{_TABLE}"] = bias
    return TimmModel(
        architecture="swin_tiny_patch4_window7_224",
        model_args={
            "img_size": side,
            "patch_size": patch_size,
            "embed_dim": config.embed_dim,
            "depths": list(config.depths),
            "num_heads": list(config.num_heads),
            "window_size": config.window_size,
            "mlp_ratio": config.mlp_ratio,
            "qkv_bias": config.qkv_bias,
        },
        tensors=converted,
        num_features=model.num_features,
        global_pool="avg",
        pretrained_cfg={
            "fixed_input_size": True,
            "pool_size": [_sides(side, patch_size, len(config.depths))[-1]] * 2,
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
        },
    )


def _check_windows(side: int, patch_size: int, window: int, depths: Sequence[int]) -> None:
    """Check that timm attends in the same windows.

    A feature map smaller than the window gets smaller windows, for which the position biases do not fit. One whose side
    is no multiple of the window is padded before its windows are shifted in transformers, and afterwards in timm, so
    that shifted windows, those of every second block, hold other positions.

    Raises:
        ValueError: If it does not.
    """
    for number, (positions, depth) in enumerate(zip(_sides(side, patch_size, len(depths)), depths, strict=True), 1):
        if positions < window or (positions % window and depth > 1):
            raise ValueError(
                f"The feature map of stage {number} has {positions} positions a side for images of {side} pixels, and "
                f"windows of {window} lie otherwise in timm there: use the format swin."
            )


def _sides(side: int, patch_size: int, stages: int) -> list[int]:
    """Return the number of positions along a side of the feature map of each stage."""
    sides = [side // patch_size]
    while len(sides) < stages:
        sides.append(-(-sides[-1] // 2))
    return sides
