"""How important each unit of a backbone is for its features, read in one pass over unlabelled images.

What a slice loses is the change of its features. If a unit u is left out, the feature f of an image changes, to first
order, by the sum over tokens of a_u * df/da_u, where a_u is the unit's activation. The importance of u is the mean over
images of the squared length of this change: the term of second order of |f - f'|^2, whose curvature is that of
Gauss-Newton. A random direction v in place of each f makes one backward pass of it: E[(v * df/da)^2] is the squared
length. Nothing but images is needed: no labels, no projection heads, and no crops or augmentations.
benchmarks/order_units.py compares this with other criteria.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...models.elastic_model import ElasticModelMixin
from ...models.unit_groups import UnitGroup


def unit_importance(model: ElasticModelMixin, batches: Iterable[Tensor], seed: int = 0) -> dict[str, Tensor]:
    """Return the importance of each unit for the features of images.

    Args:
        model: The backbone, in evaluation mode.
        batches: Images (B, C, H, W), normalised.
        seed: Seed of the random directions.

    Returns:
        By the name of the group, one number per unit (count,), float64 on the CPU.

    Raises:
        ValueError: If there are no images, or the model's features of them are not finite.
    """
    groups = model.unit_groups()
    generator = torch.Generator().manual_seed(seed)
    totals = {group.name: torch.zeros(group.count, dtype=torch.float64) for group in groups}
    seen = 0
    for pixels in batches:
        activations = _Activations(model, groups)
        # the graph begins at the pixels, so that a frozen teacher has one, too
        with torch.enable_grad(), activations:
            objective = _random_directions(model.image_tokens(model(pixels.detach().requires_grad_())), generator)
        gradients = torch.autograd.grad(objective, [tensor for _, tensor in activations.read])
        for (group, activation), gradient in zip(activations.read, gradients, strict=True):
            change = _per_unit(activation.detach() * gradient, group, len(pixels))  # (B, count)
            totals[group.name] += change.double().square().sum(dim=0).cpu()
        seen += len(pixels)
    if not seen:
        raise ValueError("There are no images to order the units by: give at least one that can be read.")
    for name, total in totals.items():
        if not bool(total.isfinite().all()):
            raise ValueError(f"The importance of {name} is not finite: the model's weights or the images are damaged.")
    return {name: total / seen for name, total in totals.items()}


def _random_directions(features: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
    """Return the sum over images of their features, of length 1, in random directions: one for each image."""
    images, _ = features
    images = normalize(images.float(), dim=-1)  # (B, D), as k-NN compares them
    directions = torch.randn(images.shape, generator=generator).to(images.device)
    return (images * directions).sum()


def _per_unit(values: Tensor, group: UnitGroup, batch_size: int) -> Tensor:
    """Add up the values of each unit in each image.

    Args:
        values: (B, ..., channels), or maps (B, channels, H, W). Windows of one image lie one after the other.
        group: The units, which the channels are.
        batch_size: B.

    Returns:
        (B, count).
    """
    if values.dim() == 4:
        values = values.movedim(1, -1)
    per_channel = values.reshape(batch_size, -1, values.shape[-1]).sum(dim=1)  # (B, channels)
    return per_channel.view(batch_size, -1, group.count, group.entries).sum(dim=(1, 3))


class _Activations:
    """Within this context, the activations of units are kept as the model computes.

    Attributes:
        read: Each group with the activations of its units.
    """

    def __init__(self, model: nn.Module, groups: Sequence[UnitGroup]):
        self.model, self.groups = model, groups
        self.read: list[tuple[UnitGroup, Tensor]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        modules = dict(self.model.named_modules())
        for group in self.groups:
            for name in group.inputs_of:
                self._handles.append(modules[name].register_forward_pre_hook(self._keep_input(group)))
            for name in group.outputs_of:
                self._handles.append(modules[name].register_forward_hook(self._keep_output(group)))

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep_input(self, group: UnitGroup) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.read.append((group, inputs[0]))

        return hook

    def _keep_output(self, group: UnitGroup) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.read.append((group, output))

        return hook
