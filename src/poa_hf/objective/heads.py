"""Projection heads: from features of any width to prototype logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..slicing import SlicedModel, slice_plan, without_storage


class Prototypes(nn.Module):
    """The K output directions of a head: a weight-normalised linear layer without bias (DINO's last layer).

    Args:
        in_features: Size of the bottleneck.
        num_prototypes: K.

    Attributes:
        weight_v: The directions (K, bottleneck).
        weight_g: Their lengths (K, 1), 1 at the start.
    """

    def __init__(self, in_features: int, num_prototypes: int):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(num_prototypes, in_features))

    @property
    def weight(self) -> Tensor:
        """The prototypes (K, bottleneck)."""
        return self.weight_g * F.normalize(self.weight_v, dim=1, eps=0.0)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (N, K) of features (N, bottleneck)."""
        return F.linear(features, self.weight)


class ProjectionHead(nn.Module):
    """An MLP, L2 normalisation and prototypes.

    Args:
        in_features: Size D of the features.
        num_layers: Linear layers of the MLP.
        hidden_size: Width of its hidden layers.
        bottleneck_size: Size of its output, which is compared with the prototypes.
        num_prototypes: K.
    """

    def __init__(self, in_features: int, num_layers: int, hidden_size: int, bottleneck_size: int, num_prototypes: int):
        super().__init__()
        sizes = [in_features] + [hidden_size] * (num_layers - 1) + [bottleneck_size]
        layers: list[nn.Module] = []
        for size, next_size in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(size, next_size), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.prototypes = Prototypes(bottleneck_size, num_prototypes)

    def forward(self, features: Tensor, project: bool = True) -> Tensor:
        """Return the logits (N, K) of features (N, D), not yet divided by a temperature.

        Args:
            features: (N, D).
            project: If False, return what is multiplied with the prototypes instead (N, bottleneck).
        """
        features = _normalized(self.mlp(features))  # (N, bottleneck)
        return self.prototypes(features) if project else features


class ProjectionHeads(nn.ModuleList):
    """One head per number of prototypes; image and patch tokens share them.

    Args:
        in_features: Size of the features of the full-size backbone.
        num_layers: Linear layers of each head's MLP.
        hidden_size: Width of the MLPs' hidden layers.
        bottleneck_size: Size of the MLPs' outputs.
        num_prototypes: Number of prototypes of each head.
    """

    def __init__(
        self, in_features: int, num_layers: int, hidden_size: int, bottleneck_size: int, num_prototypes: Sequence[int]
    ):
        super().__init__(
            ProjectionHead(in_features, num_layers, hidden_size, bottleneck_size, count) for count in num_prototypes
        )
        self.in_features = in_features
        self._sizes = (num_layers, hidden_size, bottleneck_size, tuple(num_prototypes))

    def forward(self, features: Tensor) -> Tensor:
        """Return what each head multiplies with its prototypes (H, N, bottleneck), of features (N, D).

        It is `head(features, project=False)` of each head, but each layer of all heads is one product.
        """
        for index, layer in enumerate(self.full[0].mlp):
            if not isinstance(layer, nn.Linear):
                features = layer(features)
                continue
            layers = [cast(nn.Linear, head.mlp[index]) for head in self.full]
            weight = torch.stack([each.weight for each in layers])  # (H, out, in)
            bias = torch.stack([each.bias for each in layers])  # (H, out)
            if index == 0:  # all heads read the same features
                features = F.linear(features, weight.flatten(0, 1), bias.flatten())  # (N, H * out)
                features = features.unflatten(-1, bias.shape).transpose(0, 1)  # (H, N, out)
            else:
                features = torch.baddbmm(bias[:, None], features, weight.mT)
        return _normalized(features)

    @property
    def full(self) -> list[ProjectionHead]:
        """The heads for features of the full-size backbone."""
        return cast("list[ProjectionHead]", list(self))

    @property
    def prototypes(self) -> list[Prototypes]:
        """The prototypes of each head."""
        return [head.prototypes for head in self.full]

    @torch.no_grad()
    def permute_inputs(self, order: Tensor) -> None:
        """Let the heads read features whose channels were put into another order, in place.

        Args:
            order: The channels (D,) in their new order.
        """
        for head in self.full:
            first = head.mlp[0].weight
            assert isinstance(first, Tensor)  # of a linear layer
            first.copy_(first.index_select(1, order.to(first.device)))

    def sliced(self, in_features: int, dtype: torch.dtype | None = None) -> ProjectionHeads | SlicedModel:
        """Return the heads for features of a size, which compute with these weights as they are now.

        The first layer of a head that reads a narrower sub-network is cut by the rule that cuts the backbone.

        Args:
            in_features: Size D of the features.
            dtype: What the weights of the MLPs are rounded to, once for all calls; see `ElasticModelMixin.sliced`.
        """
        if in_features == self.in_features and dtype is None:
            return self
        with without_storage():
            plain = ProjectionHeads(in_features, *self._sizes)
        return SlicedModel(plain, self, slice_plan(self, plain), dtype)


# Projection heads, or their slices that read narrower features.
Heads = ProjectionHeads | SlicedModel


def _normalized(features: Tensor) -> Tensor:
    # 1e-6 keeps half precision from dividing by zero, as in DINO's head
    return F.normalize(features, dim=-1, eps=1e-6 if features.dtype == torch.float16 else 1e-12)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the type that autocast computes in on a device; None if it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
