"""Features of several layers of a model in one forward pass, as linear evaluations by protocol read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ...formatting import one_line
from ...models.elastic_config import is_hierarchical
from ...models.elastic_model import ElasticModelMixin
from ...slicing import SlicedModel
from ..features import pooled_features
from ..opened import OpenedModel, patches_of_output
from ..subject import Subject

LAYERS = 4
LAST, SPREAD = "last", "spread"  # which four blocks are read


def layer_callables(subject: Subject, sizes: Sequence[str], blocks: str) -> dict[str, Callable[..., Any]]:
    """Return, by size, a function from `pixel_values` to an output whose `pooler_output` are `LayerFeatures.columns`.

    Args:
        subject: The model.
        sizes: Its sizes.
        blocks: Which blocks of a ViT are read: the last four, or four that are evenly spread.
    """
    return {size: partial(_called, subject, size, blocks) for size in sizes}


def layer_widths(
    subject: Subject, sizes: Sequence[str], blocks: str, device: torch.device
) -> dict[str, tuple[int, ...]]:
    """Return the widths of each size's `LayerFeatures`.

    Raises:
        ValueError: If the features of the model's layers cannot be had.
    """
    pixel_values = subject.black_image.to(device)
    try:
        with torch.no_grad():
            return {
                size: tuple(part.shape[1] for part in _parts(_opened(subject, size), pixel_values, blocks))
                for size in sizes
            }
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"{subject.name} gives no features of its layers ({one_line(error)}): leave out --protocol."
        ) from error


def _called(subject: Subject, size: str, blocks: str, pixel_values: Tensor) -> BaseModelOutputWithPooling:
    parts = _parts(_opened(subject, size), pixel_values, blocks)
    return BaseModelOutputWithPooling(pooler_output=cast(Any, torch.cat([part.float() for part in parts], dim=1)))


def _parts(run: OpenedModel, pixel_values: Tensor, blocks: str) -> list[Tensor]:
    """Return the parts of `LayerFeatures.columns`, (B, D) each."""
    if is_hierarchical(run.module.config):
        return _of_stages(run, pixel_values)
    layers = _blocks(run.module)
    places = block_places(len(layers), blocks)
    tokens: list[Tensor] = []
    norm = _final_norm(run.module)

    def normalise(module: nn.Module, inputs: Any, output: Tensor) -> None:
        # here, as the weights of a sub-network are in place only while it computes
        tokens.extend(module.forward(kept[place])[:, 0] for place in places[:-1])

    with _outputs_of({place: layers[place] for place in places}) as kept:
        hook = norm.register_forward_hook(normalise)
        try:
            output = run(pixel_values)
        finally:
            hook.remove()
    patches = patches_of_output(run, output, pixel_values).mean(dim=(1, 2))
    return [pooled_features(output), *tokens, output.last_hidden_state[:, 0], patches]


def block_places(count: int, blocks: str) -> list[int]:
    """Return which blocks are read, from 0, the last one included; fewer where there are fewer.

    Example:
        >>> block_places(12, "last"), block_places(12, "spread")
        ([8, 9, 10, 11], [3, 6, 9, 11])
    """
    if blocks == SPREAD:  # as the POA code does: `round` of a quarter, of a half and of three quarters
        quarters = [int(np.round(count / LAYERS * part)) for part in range(1, LAYERS)]
        return sorted({*(min(place, count - 1) for place in quarters), count - 1})
    return list(range(max(0, count - LAYERS), count))


def _of_stages(run: OpenedModel, pixel_values: Tensor) -> list[Tensor]:
    """Return the means over the maps of all stages; that of the last one is the class token and the patches' mean.

    Swin's earlier stages are normalised without weights, like those of the POA code, whose weights are not trained.
    """
    stages = getattr(getattr(run.module, "encoder", None), "layers", None)
    if stages is not None and hasattr(stages[0], "blocks"):  # Swin, before it merges patches
        with _outputs_of({place: stage.blocks[-1] for place, stage in enumerate(stages[:-1])}) as kept:
            output = run(pixel_values)
        tokens = [layer_norm(part, part.shape[-1:]).mean(dim=1) for _, part in sorted(kept.items())]
        last = output.last_hidden_state.mean(dim=1)
    else:
        output = run(pixel_values, output_hidden_states=True)
        *tokens, last = (hidden.mean(dim=(2, 3)) for hidden in output.hidden_states[-LAYERS:])
    return [pooled_features(output), *tokens, last, last]


@contextmanager
def _outputs_of(modules: Mapping[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Keep the outputs of modules in a dictionary, of tuples the first part."""
    kept: dict[int, Tensor] = {}

    def keep(place: int, module: nn.Module, inputs: Any, output: Any) -> None:
        kept[place] = output[0] if isinstance(output, tuple) else output

    hooks = [module.register_forward_hook(partial(keep, place)) for place, module in modules.items()]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def _blocks(module: PreTrainedModel) -> nn.ModuleList:
    count = module.config.num_hidden_layers
    for child in module.modules():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return child
    raise ValueError(f"{type(module).__name__} has no list of {count} blocks")


def _final_norm(module: PreTrainedModel) -> nn.Module:
    for name in ("layernorm", "norm"):
        if isinstance(norm := getattr(module, name, None), nn.Module):
            return norm
    raise ValueError(f"{type(module).__name__} has no normalisation after its last block")


def _opened(subject: Subject, size: str) -> OpenedModel:
    """Return the model in a size with its current weights, ready to run images."""
    model = subject.model
    called = model.sliced(size) if isinstance(model, ElasticModelMixin) else model
    module = cast(PreTrainedModel, called.plain) if isinstance(called, SlicedModel) else called
    return OpenedModel(model, module, called)
