"""Which runs compile their blocks."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ..data.augmentation import coloured
from ..models.compiled_blocks import BlockCompiler, CompilationUnavailable, block_kind, check_compiler
from ..models.configuration_poa import PoaConfig
from ..models.modeling_poa_pretraining import PoaForPreTraining
from .arguments import PoaTrainingArguments

logger = logging.getLogger(__name__)


def block_compiler(model: PoaForPreTraining, args: PoaTrainingArguments, device: torch.device) -> BlockCompiler | None:
    """Return the compiler of a run's blocks, or None if they are to run as they are.

    Args:
        model: The model.
        args: The arguments of the run. With `compile` "auto", blocks are compiled on CUDA devices that can do so.
        device: The device of the run.

    Raises:
        ValueError: If `compile` is "blocks" and the device has no compiler that works.
    """
    if args.compile == "off" or (args.compile == "auto" and device.type != "cuda"):
        return None
    try:
        check_compiler(device)
    except CompilationUnavailable as error:
        if args.compile == "blocks":
            raise ValueError(
                f"compile is blocks, but PyTorch cannot compile for {device.type} on this machine ({error}): install "
                "what it needs, or use --compile off."
            ) from error
        logger.warning("Blocks are not compiled, as PyTorch cannot compile on this machine (%s).", error)
        return None
    expected = expected_compilations(model, args)
    if _compiles_colours(device):
        expected += _kinds_of_crops(args)
    return BlockCompiler(expected, falls_back=args.compile == "auto")


def compiled_colours(
    compiler: BlockCompiler | None, device: torch.device
) -> Callable[[Tensor, dict[str, Tensor]], Tensor] | None:
    """Return the compiled colouring of crops (`augment`) of a run whose blocks are compiled on a GPU, else None.

    On a CPU, where launches cost little, its additional arithmetic would not pay.
    """
    return None if compiler is None or not _compiles_colours(device) else compiler.function("colours", coloured)


def _compiles_colours(device: torch.device) -> bool:
    return device.type != "cpu"


def expected_compilations(model: PoaForPreTraining, args: PoaTrainingArguments) -> int:
    """Return how many kinds of blocks, losses and inputs a run needs at most.

    Students see all crops, the teacher the global ones; losses differ in the number of prototypes.
    """
    of_student = model.student.num_block_kinds()
    names = model.teacher.slice_rules.block_names(model.teacher)
    of_teacher = len({block_kind(model.teacher.get_submodule(name)) for name in names})
    if model.config.elastic_teacher:
        of_teacher = of_student
    inputs = 1 if args.pack_crops else _kinds_of_crops(args)
    return of_student * inputs + of_teacher + _kinds_of_losses(model.config)


def _kinds_of_crops(args: PoaTrainingArguments) -> int:
    return 2 if args.num_local_crops else 1


def _kinds_of_losses(config: PoaConfig) -> int:
    """Return how many functions of rows of logits are compiled: those of `RowFunctions`, for each size of heads."""
    if config.distillation is not None and config.distillation["loss"] == "features":
        return 0
    # masses in the first iteration and later, assignments, cross-entropies of the intact and of the elastic student;
    # the balancing of any number of prototypes
    return (5 if config.intact_weight < 1 else 4) * len(set(config.num_prototypes)) + 1
