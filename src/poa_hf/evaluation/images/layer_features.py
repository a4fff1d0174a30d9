"""Features of several layers of a model, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerFeatures:
    """Features of several layers of N images.

    Args:
        columns: (N, sum of `widths`): the model's own feature, the class token of each layer, the mean of the patches
            after the last layer.
        widths: The number of channels of each of these.
    """

    columns: Tensor
    widths: tuple[int, ...]

    @property
    def pooled(self) -> Tensor:
        """The model's own features (N, D)."""
        return self.columns[:, : self.widths[0]]

    def rows(self, index: Tensor) -> LayerFeatures:
        """Return the features of some of the images."""
        return LayerFeatures(self.columns[index], self.widths)

    def chosen(self, layers: int, patches: bool) -> Tensor:
        """Return the class tokens of the last `layers` layers side by side, and then the mean of the patches."""
        parts = self.columns.split(self.widths, dim=1)[1:]
        tokens = parts[:-1][-layers:]
        return torch.cat([*tokens, *([parts[-1]] if patches else [])], dim=1)
