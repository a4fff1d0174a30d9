"""What a size costs: parameters, FLOPs and activation memory, counted exactly and without any computation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from ..elastic import SubNetwork
from ..models.elastic_config import elastic_config, image_shape


@dataclass(frozen=True)
class Costs:
    """The costs of one size as the stock model that `extract` gives, per image of the configuration's `image_size`.

    `parameters` counts all of them; there is no classifier.

    `flops` counts a multiplication and its addition once, as the papers on ViT, Swin and ResNet do (4.6 G for ViT-S/16
    at 224 pixels): the matrix products and convolutions of one forward pass. Twice this number is what devices
    advertise and `torch.utils.flop_counter` counts.

    `activation_bytes` is what one image adds to the memory of a training step: the tensors that a float32 forward pass
    keeps for the backward pass, each storage once, the model's own parameters and buffers not. Without stochastic depth
    and activation checkpointing, and with the attention kernel that PyTorch takes on CPUs, which like those of GPUs
    keeps no attention map where nothing is added to it.
    """

    parameters: int
    flops: int
    activation_bytes: int


def costs(config: PreTrainedConfig) -> dict[SubNetwork, Costs]:
    """The costs of every size of an elastic configuration (or of a `PoaConfig`'s backbone), in seconds for hundreds.

    At each width only the shallowest stages are counted, with one to three blocks: the first may differ from the
    others, and the others cost the same, or the same by turns (Swin's plain and shifted windows). So stages add up, and
    every further pair of blocks costs what the second and third cost.
    """
    config = elastic_config(config)
    space = config.space
    elastic_stages = [stage for stage, depths in enumerate(zip(*space.depths, strict=True)) if len(set(depths)) > 1]
    shallowest = tuple(1 if stage in elastic_stages else depth for stage, depth in enumerate(space.depths[0]))

    @cache
    def count(width: int, stage: int = 0, depth: int = shallowest[0]) -> np.ndarray:
        depths = (*shallowest[:stage], depth, *shallowest[stage + 1 :])
        return np.array(_count(config, SubNetwork(width, depths)))

    table = {}
    for sub_network in space:
        shallow = count(sub_network.width)
        total = shallow.copy()
        for stage in elastic_stages:
            pairs, one_more = divmod(sub_network.depths[stage] - 1, 2)
            if one_more:
                total += count(sub_network.width, stage, 2) - shallow
            if pairs:
                total += pairs * (count(sub_network.width, stage, 3) - shallow)
        table[sub_network] = Costs(*total.tolist())
    return table


def costs_of(config: PreTrainedConfig, sub_network: SubNetwork | str) -> Costs:
    """The costs of one size, counted on that very model. ValueError for a size outside the space."""
    config = elastic_config(config)
    return Costs(*_count(config, config.space.resolve(sub_network)))


def stock_model(config: PreTrainedConfig, sub_network: SubNetwork) -> PreTrainedModel:
    """The model that `extract` would give, in evaluation mode, its parameters left to chance."""
    with no_init_weights():
        return MODEL_MAPPING[type(config)].stock_class(config.stock_config(sub_network)).eval()


def _count(config: PreTrainedConfig, sub_network: SubNetwork) -> tuple[int, int, int]:
    """Parameters, FLOPs and activation bytes, from a forward pass of tensors without memory.

    Such tensors know that they are on the CPU, unlike those on the meta device: PyTorch then takes the same attention
    kernel as in earnest.
    """
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, so that no other storage gets this address
        return tensor

    flop_counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    with torch.device("meta"):  # not yet as such tensors: some models look at values while they are made
        # in evaluation mode: autograd records the same, and neither dropout nor stochastic depth takes part
        model = stock_model(config, sub_network)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"), torch.enable_grad():
        model = model.to_empty(device="cpu")
        pixel_values = torch.empty(1, *image_shape(config))
        with flop_counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(pixel_values)
        own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
        parameters = sum(parameter.numel() for parameter in model.parameters())
    activation_bytes = sum(storage.nbytes() for address, storage in kept.items() if address not in own)
    return parameters, flop_counter.get_total_flops() // 2, activation_bytes


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *args, **kwargs) -> int:
    """Of the products with the keys and with the values; shapes (batch, heads, tokens, head size)."""
    return 2 * query[:-1].numel() * key[-2] * (query[-1] + value[-1])


# the one attention kernel that PyTorch's counter does not know
_CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
