"""Put the units of a model in order of importance, and remember the order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...data.crop_arguments import CropArguments
from ...models.elastic_model import ElasticModelMixin
from ...models.modeling_poa_pretraining import PoaForPreTraining
from ...models.unit_groups import UnitGroup, permute_units
from ...objective.feature_matching import FeatureProjections
from ...objective.heads import ProjectionHeads
from ...runs.atomic import write_json
from ...runs.json_files import read_object
from .images import pixel_batches
from .importance import unit_importance

CRITERION = "change of the features"


@dataclass(frozen=True)
class UnitOrder:
    """The order in which the units of a model were put; its text is one sentence about it.

    Attributes:
        orders: By the name of each group of units, the places that they had before, in their new order.
        num_images: Images by which importance was estimated.
        seed: Seed of the sample of images and of the random directions.
    """

    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    num_images: int = 0
    seed: int = 0

    def __str__(self) -> str:
        units = sum(map(len, self.orders.values()))
        return (
            f"{units:,} units in {len(self.orders)} groups ordered by their importance for the features of "
            f"{self.num_images:,} images; the full size computes what it did."
        )

    def apply(self, model: PoaForPreTraining) -> None:
        """Put the units of student and teacher, and what the heads read of them, into this order, in place.

        Raises:
            ValueError: If the order is that of another architecture. The model is unchanged then.
        """
        groups = model.student.unit_groups()
        if {group.name for group in groups} != self.orders.keys():
            raise ValueError("The order has other groups of units than the model: it is that of another architecture.")
        for group in groups:
            group.check_order(self.orders[group.name])
        self._permute([model.student, model.teacher], [*_student_readers(model), model.teacher_head], groups)
        model.config.units_ordered_on = self.num_images if self.orders else None

    @torch.no_grad()
    def apply_to_optimizer(self, model: PoaForPreTraining, state: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Put what an optimizer keeps of the student and its heads into this order, in place: AdamW's moments.

        Args:
            model: The model that is trained, which this order was applied to.
            state: The optimizer's state by parameter. Tensors of a parameter's shape belong to its entries.
        """
        readers = _student_readers(model)
        parameters = [p for module in (model.student, *readers) for p in module.parameters()]
        weights = {parameter: parameter.data for parameter in parameters}
        kept = {p: {n: t for n, t in state.get(p, {}).items() if _is_like(t, p)} for p in parameters}
        for name in sorted({name for of_parameter in kept.values() for name in of_parameter}):
            # what moves the units of a model moves those of a model whose weights are the moments
            for parameter, of_parameter in kept.items():
                parameter.data = of_parameter[name] if name in of_parameter else weights[parameter].clone()
            self._permute([model.student], readers, model.student.unit_groups())
        for parameter, weight in weights.items():
            parameter.data = weight

    def _permute(
        self,
        backbones: Sequence[ElasticModelMixin],
        readers: Sequence[ProjectionHeads | FeatureProjections],
        groups: Sequence[UnitGroup],
    ) -> None:
        for backbone in backbones:
            permute_units(backbone, groups, self.orders)
        for group in groups:
            for reader in readers if group.are_features else ():
                reader.permute_inputs(torch.tensor(self.orders[group.name]))

    def save(self, path: str | Path) -> None:
        """Write the order to a JSON file."""
        groups = {name: list(order) for name, order in self.orders.items()}
        content = {"criterion": CRITERION, "num_images": self.num_images, "seed": self.seed, "orders": groups}
        write_json(Path(path), content, indent=None)

    @classmethod
    def load(cls, path: str | Path) -> UnitOrder:
        """Read the order in a JSON file.

        Raises:
            ValueError: If it holds no order.
        """
        content = read_object(Path(path))
        try:
            orders = {str(name): tuple(map(int, order)) for name, order in content["orders"].items()}
            return cls(orders, int(content["num_images"]), int(content["seed"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(f"{path} holds no order of units: give a file that UnitOrder.save wrote.") from None


def _student_readers(model: PoaForPreTraining) -> list[ProjectionHeads | FeatureProjections]:
    """Return what reads the features of the student: its heads, and projections that are trained in their place."""
    readers: list[ProjectionHeads | FeatureProjections] = [model.student_head]
    if model.distillation is not None:
        reader = model.distillation.student_heads(model.student_head)
        readers += [] if reader is model.student_head else [reader]
    return readers


def _is_like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def order_units(
    model: PoaForPreTraining,
    images: Any,
    num_images: int = 2048,
    *,
    crops: CropArguments | None = None,
    image_column: str | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    seed: int = 0,
) -> UnitOrder:
    """Put the most important units first, in student, teacher and heads, in place: slices then keep what matters most.

    The full size computes what it did. Units are the channels, heads and hidden units that slicing cuts; their
    importance is how much the teacher's features of images change without them, to the order that one backward pass
    gives (`importance`). It takes one pass over the images, which need no labels.

    Args:
        model: The model to order. What was trained elastically is in the order that training gave it: order before
            training, not after it.
        images: A dataset as `PoaTrainer` takes it (of `datasets`, streamed or not, or any collection of images), of
            which `seed` draws a sample; an iterable of Pillow images; or normalised pixels (N, C, H, W), as a tensor
            or in batches, as a DataLoader gives them.
        num_images: Images at most.
        crops: Size of the crops and normalisation; the model's image size and ImageNet's by default. Not for tensors.
        image_column: Name of the column with the images; found by its type or name if not given.
        batch_size: Images of one pass.
        num_workers: Processes that decode images.
        seed: Seed of the sample and of the random directions.

    Returns:
        The order. It is the identity for a model of which nothing can be ordered.

    Raises:
        ValueError: If there are no images, or they or the model's features of them cannot be used. The model is
            unchanged then.

    Example:
        >>> from poa_hf import PoaConfig, PoaViTConfig, TextureDataset
        >>> backbone = PoaViTConfig(
        ...     hidden_size=32, num_hidden_layers=1, num_attention_heads=4, min_hidden_size=16, image_size=32,
        ...     patch_size=8,
        ... )
        >>> model = PoaForPreTraining(PoaConfig(backbone_config=backbone, num_prototypes=[16], head_hidden_size=16))
        >>> order = order_units(model, TextureDataset(), num_images=8)
        >>> order.num_images, {name: len(units) for name, units in order.orders.items()}
        (8, {'channels': 32, 'encoder.layer.0.heads': 4, 'encoder.layer.0.hidden': 128})
    """
    order = find_order(
        model,
        images,
        num_images,
        crops=crops,
        image_column=image_column,
        batch_size=batch_size,
        num_workers=num_workers,
        seed=seed,
    )
    order.apply(model)
    return order


def find_order(
    model: PoaForPreTraining,
    images: Any,
    num_images: int = 2048,
    *,
    crops: CropArguments | None = None,
    image_column: str | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    seed: int = 0,
) -> UnitOrder:
    """Return the order that `order_units` would put the units in; the model stays as it is."""
    if num_images < 1 or batch_size < 1:
        raise ValueError(f"num_images {num_images} and batch_size {batch_size} must be at least 1.")
    if not model.teacher.unit_groups():
        return UnitOrder(seed=seed)
    device = next(model.teacher.parameters()).device
    count = 0

    def batches() -> Any:
        nonlocal count
        config = model.config.backbone_config
        for pixels in pixel_batches(images, config, num_images, crops, batch_size, image_column, num_workers, seed):
            count += len(pixels)
            yield pixels.to(device)

    importance = unit_importance(model.teacher, batches(), seed)
    orders = {group.name: tuple(group.order_by(importance[group.name])) for group in model.teacher.unit_groups()}
    return UnitOrder(orders, count, seed)
