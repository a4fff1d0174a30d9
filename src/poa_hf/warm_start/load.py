"""Start from a pre-trained model: its weights become the full-size student and teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..models.saved import load_saved_model
from ..official.weights import load_official_checkpoint
from ..ranges import FINITE, POSITIVE, check_number
from .channels import Statistics, adapt_channels
from .config import check_architecture, source_statistics
from .positions import Grid, grid_text, resize_positions
from .source import Source, find_source
from .stock import LOADING_OPTIONS, tensors_in_family


@dataclass(frozen=True)
class WarmStart:
    """What a warm start took from its source; its text is one sentence about it.

    Attributes:
        source: Name of the source: a Hub id, or the last part of a path.
        model_type: What the source is, such as `dinov2`.
        dropped: Parameters of the source that were left out, by its names.
        new: Parameters of the backbone that the source lacks (the mask token, LayerScale).
        resized: Patches per side of the position embeddings, before and after they were resized; None if they fit. Rows
            and columns before, if the source's images are not square.
        heads: Whether the projection heads came from the source, too.
        channels: The channels of images before and after the first convolution was adapted; None if they fit.
    """

    source: str
    model_type: str
    dropped: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    resized: tuple[Grid, Grid] | None = None
    heads: bool = False
    channels: tuple[int, int] | None = None

    def __str__(self) -> str:
        parts = [f"Full-size student and teacher start from {self.source} ({self.model_type})"]
        if self.resized:
            before, after = map(grid_text, self.resized)
            parts.append(f"position embeddings resized from {before} to {after} patches")
        if self.channels:
            parts.append("first convolution adapted from {} to {} channels".format(*self.channels))
        if scales := [name for name in self.new if "layer_scale" in name]:
            parts.append(f"LayerScale of 1 in {len(scales) // 2} blocks, which changes nothing")
        if tokens := [name for name in self.new if "layer_scale" not in name]:
            parts.append(f"new: {', '.join(tokens)}")
        parts.append("heads taken over" if self.heads else "projection heads are new")
        if self.dropped:
            parts.append(f"left out: {', '.join(self.dropped[:4])}{', ...' if len(self.dropped) > 4 else ''}")
        return "; ".join(parts) + "."


def init_from(
    model: PoaForPreTraining,
    source: str | Path,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
) -> WarmStart:
    """Give the full-size student and teacher the weights of a pre-trained model, so that both compute what it does.

    Full-size features then equal those of the source bit for bit, for images of every size. If `image_size` differs,
    the source's own interpolation resizes its position embeddings once. The projection heads stay as they are unless
    the source has heads of the same shapes. `warm_start_config` makes the configuration that fits.

    If the model takes images of other channels than the source, the first convolution is adapted: grey images keep
    their features (`channels` has the rule, and what differs in a ResNet).

    Args:
        model: The model to initialise, in place.
        source: Folder or Hub id of a stock model that an elastic family holds, with or without the head of a task
            (docs/warm_start.md has the list), or of an elastic backbone; a pre-training run or its supernet, of which
            the teacher is taken; or a file that `load_official_checkpoint` reads.
        image_mean: The mean with which the model's images are normalised, where their channels are not the source's; by
            default, the average of the source's for each channel.
        image_std: Their standard deviation; likewise.

    Returns:
        What was taken, what is new and what was left out.

    Raises:
        ValueError: If the source cannot be read, is of an unsupported type or another architecture than the model,
            lacks parameters, or holds values that are not finite. The model is then unchanged.

    Example:
        >>> from transformers import Dinov2Config, Dinov2Model
        >>> from poa_hf import PoaConfig, PoaForPreTraining, init_from, warm_start_config
        >>> stock = Dinov2Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=28)
        >>> Dinov2Model(stock).save_pretrained("dinov2-tiny")
        >>> config = PoaConfig(backbone_config=warm_start_config("dinov2-tiny"), num_prototypes=[32])
        >>> model = PoaForPreTraining(config)
        >>> print(init_from(model, "dinov2-tiny"))
        Full-size student and teacher start from dinov2-tiny (dinov2); projection heads are new.
    """
    if not isinstance(model, PoaForPreTraining):
        raise ValueError(f"A {type(model).__name__} is not pre-trained further: make a PoaForPreTraining of it.")
    pretrained = find_source(source)
    if (image_mean is None) != (image_std is None):
        raise ValueError("image_mean and image_std belong together: give both, or neither.")
    given = None
    if image_mean is not None and image_std is not None:
        check_number("image_mean", image_mean, FINITE)
        check_number("image_std", image_std, POSITIVE)
        given = Statistics(image_mean, image_std)
    if pretrained.kind == "official":
        start = _take_official(model, pretrained)
    elif pretrained.kind == "run":
        start = _take_run(model, pretrained, given)
    else:
        start = _take_stock(model, pretrained, given)
    model.update_teacher(momentum=0.0)
    model.config.warm_started_from = pretrained.name
    return start


def _take_official(model: PoaForPreTraining, source: Source) -> WarmStart:
    official = load_official_checkpoint(source.location, model.config)
    _check_finite(source, official.student.state_dict())
    model.load_state_dict(official.state_dict())
    return WarmStart(source.name, "the authors' file", heads=True)


def _take_run(model: PoaForPreTraining, source: Source, statistics: Statistics | None) -> WarmStart:
    check_architecture(source, model.config.backbone_config.to_dict())
    run, _ = _load(source, PoaForPreTraining)
    heads = run.teacher_head.state_dict()
    our_shapes = {name: tensor.shape for name, tensor in model.student_head.state_dict().items()}
    same_heads = our_shapes == {name: tensor.shape for name, tensor in heads.items()}
    channels = _adapt_channels(model, source, run.teacher, statistics)
    new, resized = _take_backbone(model, source, run.teacher)
    if same_heads:
        model.student_head.load_state_dict(heads)
    return WarmStart(
        source.name,
        f"the teacher of a run, {source.backbone_config.model_type}",
        dropped=() if same_heads else ("teacher_head",),
        new=new,
        resized=resized,
        heads=same_heads,
        channels=channels,
    )


def _take_stock(model: PoaForPreTraining, source: Source, statistics: Statistics | None) -> WarmStart:
    check_architecture(source, model.config.backbone_config.to_dict())
    model_type = source.backbone_config.model_type
    backbone, dropped = _load(source, AutoModel, **LOADING_OPTIONS.get(model_type, {}))
    channels = _adapt_channels(model, source, backbone, statistics)
    new, resized = _take_backbone(model, source, backbone)
    return WarmStart(source.name, model_type, tuple(dropped), new, resized, channels=channels)


def _load(source: Source, model_class: Any, **options: Any) -> tuple[Any, list[str]]:
    """Load the source in float32; also return the names that were left unread.

    Raises:
        ValueError: If it cannot be loaded, or lacks parameters, which transformers would initialise at random.
    """
    model: Any  # of the class that was asked for
    model, missing, unexpected = load_saved_model(model_class, source.location, source.name, source.part, **options)
    initialised = [name for name in missing if name.rpartition(".")[2] != "mask_token"]
    if initialised:
        count = f"{len(initialised)} parameter{'s' if len(initialised) > 1 else ''}"
        more = ", ..." if len(initialised) > 1 else ""
        raise ValueError(f"{source.name} lacks {count} ({initialised[0]}{more}): it is not a whole checkpoint.")
    if "embeddings.mask_token" in missing:
        model.embeddings.mask_token = None  # initialised by transformers; ours keeps its own initial value
    return model.eval(), unexpected


def _adapt_channels(
    model: PoaForPreTraining, source: Source, pretrained: PreTrainedModel, statistics: Statistics | None
) -> tuple[int, int] | None:
    """Adapt the source to the model's channels, in place; return the numbers before and after, if they differ."""
    num_channels = model.config.backbone_config.num_channels
    if num_channels == source.backbone_config.num_channels:
        return None
    before = source_statistics(source)
    after = statistics or before.repeated(num_channels)
    if not len(after.mean) == len(after.std) == num_channels:
        raise ValueError(
            f"image_mean has {len(after.mean)} numbers and image_std {len(after.std)}, and num_channels is "
            f"{num_channels}: give one number for each channel."
        )
    return adapt_channels(pretrained, before, after)


@torch.no_grad()
def _take_backbone(
    model: PoaForPreTraining, source: Source, pretrained: PreTrainedModel
) -> tuple[tuple[str, ...], tuple[Grid, Grid] | None]:
    """Copy the parameters of a backbone into the student, once all are known to fit.

    Returns:
        The names of parameters that the source lacks; and the grids before and after, if the position embeddings were
        resized.
    """
    parameters = dict(model.student.named_parameters())
    theirs = source.backbone_config
    resized = resize_positions(pretrained, theirs, model.config.backbone_config)
    tensors = tensors_in_family(dict(pretrained.named_parameters()), theirs)
    new = tuple(name for name in parameters if name not in tensors)
    for name in new:
        if "layer_scale" in name:
            tensors[name] = torch.ones_like(parameters[name])
        elif "mask_token" not in name:
            raise ValueError(f"{source.name} lacks {name}: it is not a whole checkpoint.")
    for name, tensor in tensors.items():
        # axes of size 1 may differ in a mask token
        if name in parameters and parameters[name].squeeze().shape != tensor.squeeze().shape:
            raise ValueError(
                f"{name} of {source.name} has shape {tuple(tensor.shape)}, where this model has "
                f"{tuple(parameters[name].shape)}: take the configuration from warm_start_config."
            )
    _check_finite(source, tensors)
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor.reshape(parameters[name].shape))
    return new, resized


def _check_finite(source: Source, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} of {source.name} holds values that are not finite: its file is damaged.")
