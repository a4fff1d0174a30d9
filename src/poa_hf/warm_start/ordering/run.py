"""The order of units of a run, before its sub-networks are trained, and of a family that is not trained at all."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback, TrainerControl, TrainerState

from ...data.crop_arguments import CropArguments
from ...data.processor import evaluation_processor
from ...models.elastic_config import ElasticConfigMixin
from ...models.from_fields import model_config
from ...models.modeling_poa_pretraining import PoaForPreTraining
from ...runs.atomic import written_folder
from ...runs.checkpoints import MAX_SHARD_SIZE
from ...runs.checksums import write_checksums
from ...runs.layout import RunFolder
from ...training.arguments import PoaTrainingArguments
from ...training.checkpointing import on_main
from ...training.engines import new_accelerator
from ...training.preparation import with_statistics
from ..config import normalisation
from ..defaults import with_source
from ..load import WarmStart, init_from
from ..source import find_source, is_in_order
from .images import crops_of
from .unit_order import UnitOrder, find_order, order_units

logger = logging.getLogger(__name__)


def order_before_training(
    model: PoaForPreTraining, dataset: Any, training: PoaTrainingArguments, num_images: int
) -> UnitOrder:
    """Order the units of a model by the images that it will be trained on, in place and alike on all processes.

    Args:
        model: The model, the same on all processes.
        dataset: The images, as `PoaTrainer` takes them.
        training: Arguments of the run: the seed, the crops, and how images are read.
        num_images: Images at most.

    Raises:
        ValueError: On all processes, if the images cannot be used.
    """
    accelerator = new_accelerator(training)
    crops = with_statistics(training, model.config, dataset, accelerator)

    def found() -> UnitOrder:
        device = next(model.teacher.parameters()).device
        model.teacher.to(accelerator.device)
        try:
            return find_order(
                model,
                dataset,
                num_images,
                crops=crops,
                image_column=training.image_column,
                num_workers=training.dataloader_num_workers,
                seed=training.seed,
            )
        finally:
            model.teacher.to(device)  # type: ignore[arg-type]

    order = on_main(accelerator, found)
    order.apply(model)
    if accelerator.is_main_process:
        logger.info("%s", order)
    return order


class OrderWhenElasticStarts(TrainerCallback):
    """Orders the units just before sub-networks are trained for the first time, at `elastic_start_step`.

    Until then the intact student has been trained alone, so that the order is of units that have learned something. The
    full size computes what it did, and AdamW's moments move with the weights. Units that are in order stay as they are.

    Args:
        dataset: The images of the run.
        num_images: Images at most.
    """

    def __init__(self, dataset: Any, num_images: int):
        self.dataset, self.num_images = dataset, num_images

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if kwargs["model"].config.units_ordered_on is not None:
            return
        with_deepspeed = PartialState().distributed_type == DistributedType.DEEPSPEED
        if with_deepspeed or isinstance(kwargs["model"], FSDPModule):
            raise ValueError(
                f"Units cannot be put in order at elastic_start_step {args.elastic_start_step} where "
                f"{'DeepSpeed' if with_deepspeed else 'FSDP'} keeps parts of the weights on each process: train with "
                "DDP until after that step, or leave out order_units."
            )

    def on_step_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step != args.elastic_start_step or kwargs["model"].config.units_ordered_on is not None:
            return
        order = order_before_training(kwargs["model"], self.dataset, args, self.num_images)
        order.apply_to_optimizer(kwargs["model"], kwargs["optimizer"].state)
        if state.is_world_process_zero:
            order.save(RunFolder(Path(args.output_dir)).unit_order)


def write_ordered_family(
    source: str | Path,
    dataset: Any,
    output: Path,
    num_images: int,
    model: dict[str, Any],
    **reading: Any,
) -> tuple[PoaForPreTraining, WarmStart, UnitOrder]:
    """Write a pre-trained model, with its units in order of importance, as the model of a run that needs no training.

    Args:
        source: Folder, file or Hub id, as `init_from` takes it.
        dataset: Images without labels, as `PoaTrainer` takes them.
        output: Folder to write, which is replaced.
        num_images: Images at most.
        model: Fields of `PoaConfig` that the user set, with `backbone_config`.
        **reading: Further arguments of `order_units`.

    Returns:
        The model, what it took from the source, and the order.

    Raises:
        ValueError: If the source or the images cannot be used. Nothing is written then.
    """
    pretrained = find_source(source)
    if is_in_order(pretrained):
        logger.warning(
            "%s holds smaller sizes already: if they were trained, another order of its units makes them worse.",
            pretrained.name,
        )
    elastic = PoaForPreTraining(model_config(with_source({"backbone_config": {}, **model}, pretrained))).eval()
    start = init_from(elastic, source)
    backbone = elastic.config.backbone_config
    crops = crops_of(backbone, **normalisation(pretrained))
    if torch.cuda.is_available():
        elastic.teacher.to("cuda")
    order = order_units(elastic, dataset, num_images, crops=crops, **reading)
    elastic.teacher.to("cpu")
    with written_folder(output.absolute()) as folder:
        elastic.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
        _processor(backbone, crops).save_pretrained(folder)
        order.save(RunFolder(folder).unit_order)
        write_checksums(folder)
    return elastic, start, order


def _processor(backbone: ElasticConfigMixin, crops: CropArguments) -> Any:
    return evaluation_processor(crops.global_crop_size, crops.image_mean, crops.image_std, crops.image_range)
