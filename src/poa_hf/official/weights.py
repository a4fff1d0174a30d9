"""Load checkpoints of the authors' code (https://github.com/Qichuzyy/POA) into `PoaForPreTraining`."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..models.configuration_poa import PoaConfig
from ..models.modeling_poa_pretraining import PoaForPreTraining
from .files import read_weights
from .names import check_family, is_official_name, parameter_names

logger = logging.getLogger(__name__)

# What PyTorch's wrappers add to parameter names: DDP, torch.compile, FSDP, activation checkpointing.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_BRANCHES = ("teacher.", "student.")
# What a file may hold beside the weights of one branch, and why it is not needed.
_NOT_NEEDED = [
    (r"student(\..*)?", "the teacher's weights are taken"),
    (r"(dino_loss|ibot_patch_loss)\..*", "statistics of a loss, which start anew"),
    (r"optimizer|.*scheduler|.*scaler|epoch|iteration|step|args|config|cfg", "of their training, no weights"),
]


@dataclass(frozen=True)
class OfficialWeights:
    """The weights of one branch under the authors' names.

    Attributes:
        tensors: The weights by name (`backbone.*`, `dino_head.*`).
        not_needed: For each other key of the file, the reason why it is not needed; None where there is no known one.
    """

    tensors: dict[str, Tensor]
    not_needed: dict[str, str | None]

    @property
    def has_heads(self) -> bool:
        return any(name.startswith("dino_head.") for name in self.tensors)


def select_weights(weights: Mapping[str, Tensor], other_keys: Iterable[str] = ()) -> OfficialWeights:
    """Select the teacher's weights, or the student's where there is no teacher, from a checkpoint.

    Prefixes that wrappers add to names are removed, and the names of a backbone without heads get their `backbone.`.

    Args:
        weights: The tensors of a file.
        other_keys: Keys of the file that hold something else, such as the state of an optimizer.

    Raises:
        ValueError: If two names become one when wrappers' prefixes are removed.
    """
    by_name: dict[str, Tensor] = {}
    for wrapped_name, tensor in weights.items():
        name = ".".join(part for part in wrapped_name.split(".") if part not in _WRAPPERS)
        if name in by_name:
            raise ValueError(
                f"The checkpoint holds {name} twice, with and without a wrapper's prefix: give one of them."
            )
        by_name[name] = tensor
    # a training checkpoint holds both branches
    branch = next((branch for branch in _BRANCHES if any(name.startswith(branch) for name in by_name)), "")
    tensors = {name.removeprefix(branch): tensor for name, tensor in by_name.items() if name.startswith(branch)}
    unread = [*other_keys, *(name for name in by_name if not name.startswith(branch))]
    without_prefix = not any(name.startswith(("backbone.", "dino_head.")) for name in tensors)
    if without_prefix and any(is_official_name(f"backbone.{name}") for name in tensors):
        tensors = {f"backbone.{name}": tensor for name, tensor in tensors.items()}
    reasons = {
        name: next((reason for pattern, reason in _NOT_NEEDED if re.fullmatch(pattern, name)), None) for name in unread
    }
    return OfficialWeights(tensors, reasons)


def to_our_layout(official_name: str, tensor: Tensor) -> Tensor:
    """Reorder the entries of an official tensor for the stock layers.

    Swin's patch merging concatenates four neighbours along the last axis: the authors go row by row, stock Swin goes
    column by column, so the middle two change places. All other tensors are returned as they are. The function is its
    own inverse.
    """
    if re.match(r"backbone\.stages\.\d+\.downsample\.", official_name) and tensor.shape[-1:].numel() % 4 == 0:
        return tensor.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].flatten(-2)  # (..., 4C)
    return tensor


def load_official_checkpoint(
    path_or_state_dict: str | Path | Mapping[str, Tensor], config: PoaConfig
) -> PoaForPreTraining:
    """Load the authors' student or teacher weights into both our student and our teacher.

    Heads that the checkpoint lacks stay as initialised. Swin differs from the authors' model in one way: they normalise
    the patch embedding over its full width before it is sliced, which stock Swin cannot hold, so here it is normalised
    over the width of the sub-network. Sizes below the full width thus differ slightly from what was trained, and a
    warning says so.

    Args:
        path_or_state_dict: A `.pth` file, of which only tensors are unpickled, with the weights at the top level or
            under `teacher` or `student` (the teacher's are preferred); a `.safetensors` file; or a mapping of the
            authors' names (`backbone.*`, `dino_head.*`) to tensors.
        config: The configuration that the checkpoint was trained with.

    Returns:
        The pre-training model.

    Raises:
        ValueError: If a file cannot be read, a name is unknown, a parameter of the backbone is missing or given twice,
            or a shape does not fit the configuration.

    Example:
        ```python
        from poa_hf import PoaConfig, load_official_checkpoint

        model = load_official_checkpoint("teacher_checkpoint.pth", PoaConfig())  # the published ViT-L
        small = model.teacher.extract("small")
        ```
    """
    if not isinstance(config, PoaConfig):
        raise ValueError(f"config is a {type(config).__name__}: give the PoaConfig of its run.")
    check_family(config.backbone_config.model_type)
    weights: object = path_or_state_dict
    if isinstance(weights, str | Path):
        weights = read_weights(weights).weights
    if not isinstance(weights, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in weights.items()
    ):
        raise ValueError(
            "The checkpoint is not a mapping of names to tensors: give the teacher's or student's weights."
        )
    tensors = select_weights(weights).tensors
    our_names = _checked_names(tensors, config.backbone_config.model_type)
    model = PoaForPreTraining(config)
    _copy_into_student(model, tensors, our_names)
    model.update_teacher(momentum=0.0)
    space = config.backbone_config.space
    if config.backbone_config.model_type == "poa_swin" and len(space.widths) > 1:
        logger.warning(
            "Sizes below the full width (%d) differ slightly from the authors': their Swin normalises the patch "
            "embedding over the full width before it is sliced, which no stock Swin can hold.",
            space.full.width,
        )
    return model


def _checked_names(weights: Mapping[str, Tensor], model_type: str) -> dict[str, list[str]]:
    """Return our names for each official name; raise a ValueError for names or values that no checkpoint has."""
    names = {name: parameter_names(name, model_type) for name in weights}
    if unknown := [name for name, ours in names.items() if ours is None]:
        raise ValueError(
            f"{len(unknown)} names are not those of the authors' {model_type} ({_some(unknown)}): "
            "give the teacher's or the student's weights from a checkpoint of this family."
        )
    known = {name: ours for name, ours in names.items() if ours is not None}
    counts = Counter(ours for each in known.values() for ours in each)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"The checkpoint gives {len(repeated)} parameters twice ({_some(repeated)}).")
    if integers := [name for name, ours in known.items() if ours and not weights[name].is_floating_point()]:
        raise ValueError(
            f"{len(integers)} weights are not floating-point numbers ({_some(integers)}): give a checkpoint that is "
            "not quantised."
        )
    if broken := [name for name, ours in known.items() if ours and not is_sound(weights[name])]:
        raise ValueError(
            f"{len(broken)} weights are not plain tensors of finite numbers ({_some(broken)}): give another checkpoint "
            "of that run."
        )
    return known


def is_sound(tensor: Tensor) -> bool:
    """Whether a tensor holds its numbers as they are, and all of them are finite."""
    plain = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized
    return plain and bool(tensor.float().isfinite().all())


@torch.no_grad()
def _copy_into_student(model: PoaForPreTraining, weights: Mapping[str, Tensor], names: dict[str, list[str]]) -> None:
    """Copy the weights into the student; raise a ValueError for wrong shapes and for parts that are incomplete."""
    parameters = dict(model.named_parameters())
    heads = {name.split(".")[1] for each in names.values() for name in each if name.startswith("student_head.")}
    required = ("student.", *(f"student_head.{index}." for index in heads))
    missing = {name for name in parameters if name.startswith(required)}
    for official_name, our_names in names.items():
        tensor = to_our_layout(official_name, weights[official_name])
        parts = tensor.chunk(len(our_names)) if len(our_names) > 1 and tensor.ndim else [tensor]
        for name, part in zip(our_names, parts, strict=False):
            parameter = parameters.get(name)
            # axes of size 1 may differ in a mask token
            if parameter is None or parameter.squeeze().shape != part.squeeze().shape:
                expected = "nothing" if parameter is None else tuple(parameter.shape)
                raise ValueError(
                    f"{official_name} has shape {tuple(part.shape)} where this configuration has {expected}: "
                    "give the configuration that the checkpoint was trained with."
                )
            parameter.copy_(part.reshape(parameter.shape))
            missing.discard(name)
    if missing:
        raise ValueError(f"The checkpoint lacks {len(missing)} parameters ({_some(sorted(missing))}).")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
