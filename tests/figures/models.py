"""Small models for the tests of this folder."""

import torch

from ..test_contract import TINY, VITS, backbone, tiny

TINY_VIT = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, intermediate_size=64
)


def elastic(family: str):
    """Make an elastic model with weights so large that patches differ and attention is uneven."""
    fields = TINY[family] | ({"layerscale_value": 1.0} if family in VITS else {})
    model = tiny(family).student.__class__(backbone(family, fields))
    return strengthen(model)


@torch.no_grad()
def strengthen(model):
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def images(model, count: int = 2, size: tuple[int, int] | None = None) -> torch.Tensor:
    side = model.config.image_size
    return torch.randn(count, 3, *(size or (side, side)))
