"""Starting from a pre-trained model: its weights become the full-size student and teacher."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import AutoModel, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..official.weights import load_official_checkpoint
from .config import Source, check_same, find_source, sentence


@dataclass(frozen=True)
class WarmStart:
    """What a warm start took, under the names of the elastic model, and of the source for what was `dropped`.

    `new` are parameters of the backbone that the source lacks (the mask token, LayerScale), `resized` the patches of a
    side of the position embeddings before and after, `heads` whether the projection heads came too.
    """

    source: str
    model_type: str
    dropped: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    resized: tuple[int, int] | None = None
    heads: bool = False

    def __str__(self) -> str:
        said = [f"Full-size student and teacher start from {self.source} ({self.model_type})"]
        if self.resized:
            before, after = self.resized
            said.append(f"position embeddings resized from {before}x{before} to {after}x{after} patches")
        if scales := [name for name in self.new if "layer_scale" in name]:
            said.append(f"LayerScale of 1 in {len(scales) // 2} blocks, which changes nothing")
        if tokens := [name for name in self.new if "layer_scale" not in name]:
            said.append(f"new: {', '.join(tokens)}")
        said.append("heads taken over" if self.heads else "projection heads are new")
        if self.dropped:
            said.append(f"left out: {', '.join(self.dropped[:4])}{', ...' if len(self.dropped) > 4 else ''}")
        return "; ".join(said) + "."


def init_from(model: PoaForPreTraining, source: str | Path) -> WarmStart:
    """Give the full-size student and teacher the weights of a pre-trained model, so that both compute what it does.

    Full-size features then equal the source's: bit for bit, but for position embeddings that are resized because
    `image_size` differs (bicubic, as DINOv2 does at each call). The projection heads stay as they are, unless the
    source has heads of the same shapes. Configurations of the same architecture come from `warm_start_config`.

    Args:
        source: Folder or Hub id of a stock `dinov2`, `vit` or `swin` checkpoint (with or without a task's head), of a
            `gn_resnet` or an elastic backbone; a pre-training run or its supernet (of which the teacher is taken); or a
            file that `load_official_checkpoint` reads.

    Raises:
        ValueError: If the source cannot be read, is of an unsupported type or another architecture than the model,
            lacks parameters or holds values that are not finite. The model is then as it was.
    """
    found = find_source(source)
    if found.kind == "official":
        start = _take_official(model, found)
    elif found.kind == "run":
        start = _take_run(model, found)
    else:
        start = _take_stock(model, found)
    model.update_teacher(momentum=0.0)
    model.config.warm_started_from = found.name
    return start


def _take_official(model: PoaForPreTraining, source: Source) -> WarmStart:
    loaded = load_official_checkpoint(source.location, model.config)
    _check_finite(source, loaded.student.state_dict())
    model.load_state_dict(loaded.state_dict())
    return WarmStart(source.name, "the authors' file", heads=True)


def _take_run(model: PoaForPreTraining, source: Source) -> WarmStart:
    check_same(source, model.config.backbone_config.to_dict())
    loaded, _ = _load(source, PoaForPreTraining)
    heads = loaded.teacher_head.state_dict()
    ours = {name: tensor.shape for name, tensor in model.student_head.state_dict().items()}
    same_heads = ours == {name: tensor.shape for name, tensor in heads.items()}
    new, resized = _take_backbone(model, source, loaded.teacher)
    if same_heads:
        model.student_head.load_state_dict(heads)
    return WarmStart(
        source.name,
        f"the teacher of a run, {source.config.model_type}",
        () if same_heads else ("teacher_head",),
        new,
        resized,
        same_heads,
    )


def _take_stock(model: PoaForPreTraining, source: Source) -> WarmStart:
    check_same(source, model.config.backbone_config.to_dict())
    options = {"vit": {"add_pooling_layer": False, "use_mask_token": True}, "swin": {"use_mask_token": True}}
    loaded, dropped = _load(source, AutoModel, **options.get(source.config.model_type, {}))
    new, resized = _take_backbone(model, source, loaded)
    return WarmStart(source.name, source.config.model_type, tuple(dropped), new, resized)


def _load(source: Source, model_class, **options) -> tuple[PreTrainedModel, list[str]]:
    """The model in float32 and the names of what it left unread. ValueError where it would make parameters up."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would print a table of what is missing, which we tell in words
    try:
        model, report = model_class.from_pretrained(
            source.location, dtype=torch.float32, output_loading_info=True, **options
        )
    except Exception as error:  # a damaged file can raise almost anything
        raise ValueError(f"The weights of {source.name} cannot be loaded ({sentence(error)}).") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing = sorted(name for name in report["missing_keys"] if name.rpartition(".")[2] != "mask_token")
    if missing:
        raise ValueError(
            f"{source.name} lacks {len(missing)} parameters ({missing[0]}, ...): it is not a whole checkpoint."
        )
    if "embeddings.mask_token" in report["missing_keys"]:
        model.embeddings.mask_token = None  # not the source's: ours stays as initialised
    return model.eval(), sorted(report["unexpected_keys"])


@torch.no_grad()
def _take_backbone(
    model: PoaForPreTraining, source: Source, loaded: PreTrainedModel
) -> tuple[tuple[str, ...], tuple[int, int] | None]:
    """Copy a backbone's parameters into the student; gives the names of what it lacks, and the grids of resized
    position embeddings. Nothing is copied before all is known to fit."""
    ours = dict(model.student.named_parameters())
    theirs = {_our_name(name): tensor for name, tensor in loaded.named_parameters()}
    resized = None
    name = "embeddings.position_embeddings"
    if name in ours and ours[name].shape != theirs[name].shape:
        side = model.config.backbone_config.image_size // model.config.backbone_config.patch_size
        class_tokens = ours[name].shape[1] - side**2  # 1 in a ViT, 0 in a Swin
        before = round((theirs[name].shape[1] - class_tokens) ** 0.5)
        resized = before, side
        theirs[name] = _resized(theirs[name], class_tokens, before, side)
    new = tuple(name for name in ours if name not in theirs)
    for name in new:
        if "layer_scale" in name:
            theirs[name] = torch.ones_like(ours[name])
        elif "mask_token" not in name:
            raise ValueError(f"{source.name} lacks {name}: it is not a whole checkpoint.")
    for name, tensor in theirs.items():
        # a mask token's axes of size 1 may be others
        if name in ours and ours[name].squeeze().shape != tensor.squeeze().shape:
            raise ValueError(
                f"{name} of {source.name} has shape {tuple(tensor.shape)}, where this model has "
                f"{tuple(ours[name].shape)}: take the configuration from warm_start_config."
            )
    _check_finite(source, theirs)
    for name, tensor in theirs.items():
        ours[name].copy_(tensor.reshape(ours[name].shape))
    return new, resized


def _resized(embeddings: Tensor, class_tokens: int, before: int, after: int) -> Tensor:
    """Position embeddings (1, class tokens + before², D) for `after` patches a side, as DINOv2 makes them."""
    grid = embeddings[:, class_tokens:].unflatten(1, (before, before)).permute(0, 3, 1, 2)
    grid = interpolate(grid, size=(after, after), mode="bicubic", align_corners=False)
    return torch.cat([embeddings[:, :class_tokens], grid.flatten(2).transpose(1, 2)], dim=1)


def _our_name(name: str) -> str:
    """A stock `vit`'s name in the elastic ViT, which has DINOv2's; other families' names are the same."""
    if not name.startswith("layers."):
        return name
    name = re.sub(r"^layers\.", "encoder.layer.", name)
    return name.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")


def _check_finite(source: Source, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} of {source.name} holds values that are not finite: its file is damaged.")
