"""`poa pretrain`: pre-train an elastic model on unlabelled images."""

from __future__ import annotations

import dataclasses
import logging
import re
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .configs import list_configs
from .failures import is_first_process
from .main import quiet_libraries
from .recipe import Recipe, parse_recipe

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from ..models.foreign_teacher import ForeignTeacher
    from ..warm_start.ordering.unit_order import UnitOrder

logger = logging.getLogger(__name__)


def pretrain(argv: list[str]) -> None:
    """Run `poa pretrain [--config NAME_OR_FILE] [--key value ...]`."""
    if "--list_configs" in argv or "--list-configs" in argv:
        print(list_configs())
        return
    run_recipe(parse_recipe(argv, prog="poa pretrain"))


def run_recipe(recipe: Recipe) -> None:
    """Train as a recipe says, from its start or from a checkpoint."""
    quiet_libraries()
    if recipe.training.log_level is None:
        logging.getLogger("poa_hf").setLevel(logging.WARNING if recipe.training.quiet else logging.INFO)
    import torch
    from transformers import set_seed
    from transformers.initialization import no_init_weights

    from ..models.modeling_poa_pretraining import PoaForPreTraining
    from ..runs.checkpoints import check_recipe_is_own, find_checkpoint, is_finished, step_of, units_ordered_on
    from ..training.checks import check_run, check_weights_type
    from ..training.console import ConsoleCallback
    from ..training.engines import device_of_process
    from ..training.hub_pushes import push_finished
    from ..training.stopping import TrainingInterrupted
    from ..training.trainer import PoaTrainer

    # before the data is opened and the model made, which takes a while
    check_weights_type(recipe.model)
    check_run(recipe.model, recipe.training)
    training, data = recipe.training, recipe.data
    folder = Path(training.output_dir)
    checkpoint = find_checkpoint(folder, training.resume_from_checkpoint, training.overwrite_output_dir)
    check_recipe_is_own(folder, checkpoint, training.overwrite_output_dir)
    if checkpoint is not None and is_finished(folder, checkpoint, training.max_steps):
        if is_first_process():
            step = step_of(checkpoint)
            advice = "raise --max_steps" if training.num_train_epochs is None else "raise --num_train_epochs"
            print(f"{training.output_dir} is already at step {step} of {training.max_steps}: {advice}.")
            if training.push_to_hub:
                push_finished(training, recipe.model, print)
        return
    teachers = _frozen_teachers(recipe)
    dataset = data.open_dataset()
    callbacks = _evaluation(recipe)
    if not training.quiet:
        callbacks.append(ConsoleCallback(data.described, _has_labels(recipe, dataset)))
    set_seed(training.seed)
    # Random values take most of the time in which a model is made: a GPU draws its own, and none are drawn where a
    # checkpoint overwrites them. A warm start reads, resizes and orders weights on the CPU. A resumed run makes its
    # model where it was first made, as what is computed instead of saved (rotary frequencies) is rounded there.
    is_read = recipe.init_from or recipe.order_units
    with nullcontext() if checkpoint is None else no_init_weights():
        with torch.device("cpu") if is_read else device_of_process():
            model = PoaForPreTraining(recipe.model)
    if recipe.init_from:
        from ..warm_start.defaults import start_run

        start_run(model, recipe.init_from, recipe.checkpoint, training, recipe.evaluation.eval_steps)
    order = None
    if checkpoint is not None:
        recipe.model.units_ordered_on = model.config.units_ordered_on = units_ordered_on(checkpoint)
        step = step_of(checkpoint)
        if recipe.order_units and recipe.model.units_ordered_on is None and step > training.elastic_start_step:
            recipe.order_units = False
            if model.student.unit_groups() and is_first_process():
                logger.warning(
                    "The units stay as they are: sub-networks have been trained until step %d, and another order would "
                    "undo what they have learnt.",
                    step,
                )
    elif recipe.order_units and not training.elastic_start_step:
        from ..warm_start.ordering.run import order_before_training

        order = order_before_training(model, dataset, training, recipe.order_images)
    elif recipe.order_units:  # asked for, also where the source is in an order already
        recipe.model.units_ordered_on = model.config.units_ordered_on = None
    if recipe.order_units and training.elastic_start_step:
        from ..warm_start.ordering.run import OrderWhenElasticStarts

        callbacks.append(OrderWhenElasticStarts(dataset, recipe.order_images))
    callbacks.insert(0, _recipe_saver(recipe, order))
    trainer = PoaTrainer(model, training, train_dataset=dataset, callbacks=callbacks, **teachers)
    try:
        trainer.train()
    except TrainingInterrupted:
        trainer.accelerator.state.destroy_process_group()
        raise
    trainer.accelerator.state.destroy_process_group()


def _frozen_teachers(recipe: Recipe) -> dict[str, ForeignTeacher]:
    """Load the models that the recipe names as `foreign_teacher` and `gram_teacher`."""
    from ..warm_start.foreign_teacher import load_foreign_teacher

    training = recipe.training
    sizes = {
        "foreign_teacher": training.foreign_teacher_size,
        "gram_teacher": training.gram_teacher_size or training.global_crop_size,
    }
    named = {name: getattr(recipe, name) for name in sizes}
    return {name: load_foreign_teacher(place, sizes[name]) for name, place in named.items() if place is not None}


def _evaluation(recipe: Recipe) -> list[TrainerCallback]:
    options, data = recipe.evaluation, recipe.data
    strategy = recipe.training.eval_strategy
    if strategy == "no" or (strategy == "steps" and options.eval_steps is None):
        return []
    from ..evaluation.callback import KnnEvaluationCallback, WarmStartGuard
    from ..evaluation.splits import open_splits

    name, config_name, part = options.eval_dataset_name, options.eval_dataset_config_name, {}
    if name is None and data.datasets is not None:
        raise ValueError("Give --eval_dataset_name: a mixture of datasets has no labels to measure by.")
    if name is None:
        name, config_name, part = data.dataset_name, data.dataset_config_name, data.part_of_dataset
    try:
        splits = open_splits(
            name,
            config_name,
            options.eval_train_split,
            options.eval_test_split,
            max_train_images=options.eval_max_train_images,
            max_test_images=options.eval_max_test_images,
            holdout=options.eval_holdout,
            max_image_pixels=recipe.training.max_image_pixels,
            **part,
        )
    except ValueError as error:
        # by the names that the options have here
        raise ValueError(re.sub(r"--(test_split|holdout|max_\w+_images)\b", r"--eval_\1", str(error))) from error
    callback = WarmStartGuard if recipe.init_from else KnnEvaluationCallback
    return [callback(splits, options.eval_steps if strategy == "steps" else None, options.eval_sizes, options.eval_k)]


def _has_labels(recipe: Recipe, dataset: Any) -> bool:
    """Return whether the run's own data has labels, so that `poa evaluate` needs no other."""
    from ..evaluation.data.label_column import find_label_column

    if recipe.evaluation.eval_dataset_name is not None:
        return True
    if recipe.data.datasets is not None:  # a mixture
        return False
    try:
        find_label_column(dataset)
    except ValueError:
        return False
    return True


def _recipe_saver(recipe: Recipe, order: UnitOrder | None) -> TrainerCallback:
    """Return a callback that saves the resolved recipe, and the order of units, once the folder is known to be free."""
    from transformers import TrainerCallback, TrainerControl, TrainerState

    from ..runs.atomic import write_text
    from ..runs.layout import RunFolder
    from ..training.arguments import PoaTrainingArguments

    class SaveRecipe(TrainerCallback):
        def on_train_begin(  # type: ignore[override]  # our arguments stand in for transformers'
            self, args: PoaTrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
        ) -> None:
            if state.is_world_process_zero:
                # the trainer's arguments, as it may have measured the statistics of channels
                resolved = dataclasses.replace(recipe, training=args)
                folder = RunFolder(Path(args.output_dir))
                write_text(folder.recipe, resolved.to_yaml())
                if order is not None:
                    order.save(folder.unit_order)

    return SaveRecipe()
