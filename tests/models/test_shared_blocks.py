"""Sizes that are computed together give what each gives alone, from fewer blocks."""

import random
from collections import Counter

import pytest
import torch
from transformers import AutoModel

from poa_hf.elastic import block_indices
from poa_hf.models.shared_blocks import shared_outputs
from poa_hf.sub_network import SubNetwork

from ..test_contract import TINY, VITS, backbone


def model_of(family: str, **fields):
    config = backbone(family, TINY[family] | {"num_hidden_layers": 7} | fields, min_num_hidden_layers=2)
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("family", VITS)
@torch.no_grad()
def test_outputs_are_the_same_to_the_bit(family):
    model = model_of(family, hidden_size_step=20)
    pixels = torch.randn(2, 3, 32, 32)
    sizes = list(model.config.space)
    for chosen in (sizes, random.Random(0).sample(sizes, 7), sizes[:1], [model.config.space.full]):
        found = {size: output.last_hidden_state for size, output in model.outputs_of(chosen, pixels)}
        assert found.keys() == set(chosen)
        for size in chosen:
            assert torch.equal(found[size], model(pixels, sub_network=size).last_hidden_state), size


@pytest.mark.parametrize("family", ["swin", "resnet"])
@torch.no_grad()
def test_other_families_compute_each_size(family):
    config = backbone(family, TINY[family])
    model = AutoModel.from_config(config).eval()
    pixels = torch.randn(2, 3, 64, 64)
    sizes = list(config.space)[::3]
    for size, output in model.outputs_of(map(str, sizes), pixels):
        assert torch.equal(output.pooler_output, model(pixels, sub_network=size).pooler_output)


@torch.no_grad()
def test_hidden_states_and_training_are_those_of_each_size():
    model = model_of("vit")
    pixels, sizes = torch.randn(2, 3, 32, 32), list(model.config.space)[:6]
    model.config.output_hidden_states = True
    for size, output in model.outputs_of(sizes, pixels):
        expected = model(pixels, sub_network=size).hidden_states
        assert len(output.hidden_states) == size.depths[0] + 1
        assert all(map(torch.equal, output.hidden_states, expected))
    model.config.output_hidden_states = False
    model.train()
    assert len(list(model.outputs_of(sizes, pixels))) == 6 and model.training


class Block(torch.nn.Module):
    """Adds its place in the full model to a text, and takes note of each call."""

    calls: Counter = Counter()

    def __init__(self, place: int):
        super().__init__()
        self.place = place

    def forward(self, path):
        path = (*path, self.place)
        self.calls[path] += 1
        return path


@pytest.mark.parametrize(("full", "least"), [(24, 12), (4, 2), (12, 6), (9, 1)])
def test_each_beginning_is_computed_once(full, least):
    Block.calls.clear()
    sizes = [SubNetwork(width, depth) for depth in range(least, full + 1) for width in (2, 1)]

    def prepare(size):
        blocks = [Block(place) for place in block_indices(full, size.depths[0])]

        def compute():
            states = (size.width,)
            for block in blocks:
                states = block(states)
            return states

        return blocks, compute

    found = dict(shared_outputs(sizes, full, prepare))
    assert found == {size: (size.width, *block_indices(full, size.depths[0])) for size in sizes}
    paths = [(size.width, *block_indices(full, size.depths[0])) for size in sizes]
    assert Block.calls == Counter({path[:stop] for path in paths for stop in range(2, len(path) + 1)})
    if full == 24:  # per width, of 234 blocks in all depths
        assert len(Block.calls) == 2 * 161
