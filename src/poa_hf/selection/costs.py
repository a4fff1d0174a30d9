"""What a size costs: parameters, FLOPs and activation memory, counted exactly and without computing anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from ..models.elastic_config import ElasticConfigMixin, elastic_config, image_shape
from ..models.elastic_model import ElasticModelMixin
from ..models.flops import counted_once, flop_counter, plain_model, summed_over_stages
from ..sub_network import SubNetwork


@dataclass(frozen=True)
class Costs:
    """The costs of one size, as the stock model that `extract` gives.

    Attributes:
        parameters: Number of all parameters; there is no classifier.
        flops: Floating-point operations of one forward pass of one image of the configuration's `image_size`: the
            matrix products and convolutions, with a multiplication and its addition counted once, as in the papers on
            ViT, Swin and ResNet (4.6 G for ViT-S/16 at 224 pixels). Devices advertise twice this number, which is also
            what `torch.utils.flop_counter` counts.
        activation_bytes: Memory that one image adds to a training step: the tensors that a float32 forward pass keeps
            for the backward pass, each storage once, without the model's parameters and buffers. Counted without
            stochastic depth and activation checkpointing, and with the fused attention of CPUs, which like that of
            GPUs keeps no attention map.
    """

    parameters: int
    flops: int
    activation_bytes: int


def costs(config: PreTrainedConfig | PreTrainedModel) -> dict[SubNetwork, Costs]:
    """Count the costs of every size of a space, which takes seconds for hundreds of sizes.

    Few sizes are counted, from which the others follow (`models.flops.summed_over_stages`).

    Args:
        config: An elastic configuration, or a model or `PoaConfig` that has one.

    Returns:
        The costs by size, in the order of the space.

    Raises:
        ValueError: If the model has only one size.

    Example:
        >>> from poa_hf import PoaViTConfig, SubNetwork
        >>> table = costs(PoaViTConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, min_hidden_size=64))
        >>> table[SubNetwork(64, 2)].parameters, table[SubNetwork(64, 2)].flops
        (162304, 38934784)
    """
    config = elastic_config(config)

    def count(sub_network: SubNetwork) -> np.ndarray:
        counted = count_costs(config, sub_network)
        return np.array([counted.parameters, counted.flops, counted.activation_bytes])

    costs_of = summed_over_stages(config.space, count)
    return {sub_network: Costs(*costs_of(sub_network).tolist()) for sub_network in config.space}


def stock_model(config: ElasticConfigMixin, sub_network: SubNetwork) -> PreTrainedModel:
    """Return the model that `extract` would give, in evaluation mode, with uninitialised parameters."""
    elastic_class = cast("type[ElasticModelMixin]", MODEL_MAPPING[type(config)])
    with no_init_weights():
        return elastic_class.stock_class(config.stock_config(sub_network)).eval()


@counted_once
def count_costs(config: ElasticConfigMixin, sub_network: SubNetwork) -> Costs:
    """Count the costs of one sub-network, in or outside the space, by a forward pass of tensors without memory.

    Unlike tensors on the meta device, fake tensors are on the CPU, so that PyTorch takes the same attention kernel as
    in real execution. A plain model of the elastic class computes what the stock one does, and keeps none of these
    tensors in a cache of the process, as stock DINOv3 would.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()  # one object for all tensors that share it, for as long as it is held
        kept[id(storage)] = storage
        return tensor

    counter = flop_counter()
    with torch.device("meta"):  # not yet as fake tensors: some models look at values while they are made
        parameters = stock_model(config, sub_network).num_parameters()
        model = plain_model(config, sub_network)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"), torch.enable_grad():
        model = model.to_empty(device="cpu")
        pixel_values = torch.empty(1, *image_shape(config))  # (1, C, H, W)
        model_storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
        with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(pixel_values)
        for storage in model_storages:
            kept.pop(id(storage), None)
    activation_bytes = sum(storage.nbytes() for storage in kept.values())
    return Costs(parameters, counter.get_total_flops() // 2, activation_bytes)
