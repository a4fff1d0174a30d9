"""The units of Transformer blocks whose layers are named as in transformers' vision models."""

from __future__ import annotations

import re

from torch import nn

from .unit_groups import UnitAxis, UnitGroup

NORMS = "(norm1|norm2|layernorm_before|layernorm_after)"


def channel_axes(blocks: str) -> tuple[UnitAxis, ...]:
    """Return where blocks hold the channels of the residual stream.

    Args:
        blocks: Pattern of the blocks' names.
    """
    return (
        UnitAxis(rf"{blocks}\.{NORMS}\.(weight|bias)", 0),
        UnitAxis(rf"{blocks}\.attention\.[qkv]_proj\.weight", 1),
        UnitAxis(rf"{blocks}\.attention\.o_proj\.(weight|bias)", 0),
        UnitAxis(rf"{blocks}\.mlp\.(fc1|gate_proj|up_proj)\.weight", 1),
        UnitAxis(rf"{blocks}\.mlp\.(fc2|down_proj)\.(weight|bias)", 0),
        UnitAxis(rf"{blocks}\.layer_scale[12]\.lambda1", 0),
    )


def norms(model: nn.Module, blocks: str) -> tuple[str, ...]:
    """Return the names of the norms of blocks, whose output all layers of the residual branches read."""
    pattern = re.compile(rf"{blocks}\.{NORMS}")
    return tuple(name for name, _ in model.named_modules() if pattern.fullmatch(name))


def block_units(model: nn.Module, block: str, num_heads: int, *per_head: UnitAxis) -> list[UnitGroup]:
    """Return the heads and the hidden units of a block, its MLP gated or not.

    Channels inside a head never move, as rotary positions turn some of them together.

    Args:
        model: The model.
        block: Name of the block.
        num_heads: Its heads.
        per_head: Axes of further parameters that hold something for each head.
    """
    name = re.escape(block)
    read, last = f"{block}.attention.o_proj", _last_linear(model, f"{block}.mlp")
    heads = UnitGroup(
        f"{block}.heads",
        num_heads,
        (
            UnitAxis(rf"{name}\.attention\.[qkv]_proj\.(weight|bias)", 0),
            UnitAxis(rf"{re.escape(read)}\.weight", 1),
            *per_head,
        ),
        inputs_of=(read,),
        entries=_in_features(model, read) // num_heads,
    )
    hidden = UnitGroup(
        f"{block}.hidden",
        _in_features(model, last),
        (
            UnitAxis(rf"{name}\.mlp\.(fc1|gate_proj|up_proj)\.(weight|bias)", 0),
            UnitAxis(rf"{re.escape(last)}\.weight", 1),
        ),
        inputs_of=(last,),
    )
    return [heads, hidden]


def _last_linear(model: nn.Module, mlp: str) -> str:
    """The layer of an MLP that reads its hidden units; all its other linear layers make them."""
    return [f"{mlp}.{name}" for name, layer in model.get_submodule(mlp).named_children() if _is_linear(layer)][-1]


def _in_features(model: nn.Module, name: str) -> int:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer.in_features


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear)
