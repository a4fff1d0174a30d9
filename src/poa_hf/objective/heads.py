"""Projection heads: from features of any width to prototype logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..slicing import SlicedModel, slice_plan, without_storage


class Prototypes(nn.Module):
    """K output directions: a weight-normalised linear layer without bias (DINO's last layer).

    `weight_v` (K, bottleneck) gives the directions, `weight_g` (K, 1) their lengths, 1 at the start.
    """

    def __init__(self, in_features: int, num_prototypes: int):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(num_prototypes, in_features))

    @property
    def weight(self) -> Tensor:
        return self.weight_g * F.normalize(self.weight_v, dim=1, eps=0.0)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight)


class ProjectionHead(nn.Module):
    """MLP, L2 normalisation, prototypes: (N, width) -> logits (N, K), not yet divided by a temperature, or
    (N, bottleneck), what the prototypes are multiplied with, if `project` is False."""

    def __init__(self, in_features: int, num_layers: int, hidden_size: int, bottleneck_size: int, num_prototypes: int):
        super().__init__()
        sizes = [in_features] + [hidden_size] * (num_layers - 1) + [bottleneck_size]
        layers: list[nn.Module] = []
        for size, next_size in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(size, next_size), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.prototypes = Prototypes(bottleneck_size, num_prototypes)

    def forward(self, features: Tensor, project: bool = True) -> Tensor:
        # 1e-6 keeps half precision from dividing by zero, as in DINO's head
        features = self.mlp(features)
        eps = 1e-6 if features.dtype == torch.float16 else 1e-12
        features = F.normalize(features, dim=-1, eps=eps)
        return self.prototypes(features) if project else features


class ProjectionHeads(nn.ModuleList):
    """One head per number of prototypes, shared by image and patch tokens.

    Features of a narrower sub-network go through heads whose first layer is cut by the rule that cuts the backbone:
    `sliced` gives them.
    """

    def __init__(self, in_features: int, num_layers: int, hidden_size: int, bottleneck_size: int, num_prototypes):
        super().__init__(
            ProjectionHead(in_features, num_layers, hidden_size, bottleneck_size, count) for count in num_prototypes
        )
        self.in_features = in_features
        self._sizes = (num_layers, hidden_size, bottleneck_size, tuple(num_prototypes))

    def sliced(self, in_features: int) -> list[nn.Module] | list[SlicedModel]:
        """The heads for features of this width, as callables on these weights as they are now."""
        if in_features == self.in_features:
            return list(self)
        with without_storage():
            plain = ProjectionHeads(in_features, *self._sizes)
        return [SlicedModel(small, head, slice_plan(head, small)) for head, small in zip(self, plain, strict=True)]
