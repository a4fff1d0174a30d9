"""Floating-point operations of forward passes, counted without computing anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, lru_cache, wraps
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import MODEL_MAPPING, PreTrainedModel
from transformers.initialization import no_init_weights

from ..elastic import ElasticSpace
from ..sub_network import SubNetwork
from .elastic_config import ElasticConfigMixin
from .elastic_model import ElasticModelMixin

Counts = TypeVar("Counts")


def flop_counter() -> FlopCounterMode:
    """Return a counter of matrix products, of which a multiplication and its addition count as two operations."""
    return FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)


def counted_once(count: Callable[..., Counts]) -> Callable[..., Counts]:
    """Keep what a function counts of an elastic configuration, for all configurations with the same fields.

    A recipe, a trainer and a saved run each have a configuration of their own, and want the same counts.

    Args:
        count: A function of a configuration and of further arguments, which can be hashed.
    """

    @lru_cache(maxsize=4096)
    def counted(config_class: Any, fields: str, *others: Any) -> Counts:
        return count(config_class.from_dict(json.loads(fields)), *others)

    @wraps(count)
    def by_fields(config: ElasticConfigMixin, *others: Any) -> Counts:
        config_class: Any = type(config)
        return counted(config_class, config.to_json_string(), *others)

    return by_fields


@counted_once
def count_forward_flops(config: ElasticConfigMixin, sub_network: SubNetwork, side: int) -> int:
    """Count the operations of a forward pass of one image.

    Args:
        config: An elastic configuration.
        sub_network: A size in or outside of its space.
        side: Height and width of the image in pixels, which need not be `image_size`.
    """
    with torch.device("meta"), torch.no_grad(), flop_counter() as counter:
        plain_model(config, sub_network)(torch.empty(1, config.num_channels, side, side))  # (1, C, H, W)
    return counter.get_total_flops()


def plain_model(config: ElasticConfigMixin, sub_network: SubNetwork) -> PreTrainedModel:
    """Return a sub-network as a model of the elastic class, in evaluation mode and with uninitialised parameters.

    Autograd records what it does in training, and neither dropout nor stochastic depth takes part.
    """
    elastic_class = cast("type[ElasticModelMixin]", MODEL_MAPPING[type(config)])
    with no_init_weights():
        return elastic_class(config.plain_config(sub_network)).eval()


def summed_over_stages(
    space: ElasticSpace, count: Callable[[SubNetwork], np.ndarray]
) -> Callable[[SubNetwork], np.ndarray]:
    """Return a function that gives a cost of any size of a space, from few sizes that are counted.

    At each width, only models with the shallowest stages are counted, with one to three blocks in one stage: the first
    block may differ from the others, which cost the same or, like Swin's plain and shifted windows, alternate. So the
    costs of stages add up, and each further pair of blocks costs as much as the second and third together.

    Args:
        space: The space.
        count: Counts the costs of one size.
    """
    elastic_stages = [stage for stage, depths in enumerate(zip(*space.depths, strict=True)) if len(set(depths)) > 1]
    shallowest = tuple(1 if stage in elastic_stages else depth for stage, depth in enumerate(space.depths[0]))

    @cache
    def counted(width: int, stage: int = 0, depth: int = shallowest[0]) -> np.ndarray:
        return count(SubNetwork(width, (*shallowest[:stage], depth, *shallowest[stage + 1 :])))

    def total(sub_network: SubNetwork) -> np.ndarray:
        shallow = counted(sub_network.width)
        result = shallow.copy()
        for stage in elastic_stages:
            pairs, one_more = divmod(sub_network.depths[stage] - 1, 2)
            if one_more:
                result += counted(sub_network.width, stage, 2) - shallow
            if pairs:
                result += pairs * (counted(sub_network.width, stage, 3) - shallow)
        return result

    return total


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *args: Any, **kwargs: Any) -> int:
    """FLOPs of the products with the keys and with the values; shapes (batch, heads, tokens, head size)."""
    return 2 * query[:-1].numel() * key[-2] * (query[-1] + value[-1])


# The one attention kernel that PyTorch's counter does not know. Its backward pass has five matrix products to the
# forward pass's two.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda gradient, *shapes, **kwargs: (
        5 * _attention_flops(*shapes[:3]) // 2
    ),
}
