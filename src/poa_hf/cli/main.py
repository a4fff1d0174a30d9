"""The command `poa`: each sub-command is a few calls of the library, and each mistake one sentence."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

from .parser import CommandParser
from .recipe import Recipe, parse_recipe


def main(argv: list[str] | None = None) -> int:
    """Entry point of `poa`; returns the exit status (2 for a user's mistake)."""
    argv = sys.argv[1:] if argv is None else argv
    commands: dict[str, Callable[[list[str]], None]] = {
        "pretrain": pretrain,
        "extract": extract,
        "evaluate": evaluate,
        "select": select,
        "report": report,
        "convert": convert,
        "push": push,
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(_USAGE)
        return 0
    if argv[0] not in commands:
        return _fail(f"{argv[0]!r} is not a command: use one of {', '.join(commands)}.")
    return run(commands[argv[0]], argv[1:])


def run(command: Callable[[list[str]], None], argv: list[str]) -> int:
    """Run a command; a mistake or a failed run becomes one sentence and an exit status."""
    from ..training.trainer import TrainingDivergedError

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("poa_hf").setLevel(logging.INFO)
    transformers_logging.disable_progress_bar()
    try:
        command(argv)
    except (ValueError, OSError) as error:
        return _fail(" ".join(str(error).split()))
    except TrainingDivergedError as error:
        return _fail(str(error), status=3)
    except KeyboardInterrupt:
        return _fail("interrupted.", status=130)
    return 0


def pretrain(argv: list[str]) -> None:
    """`poa pretrain [--config FILE.yaml] [--key value ...]`"""
    recipe = parse_recipe(argv, prog="poa pretrain")
    from ..data.sources import open_dataset
    from ..models.modeling_poa_pretraining import PoaForPreTraining
    from ..runs.checkpoints import find_checkpoint
    from ..training.checks import check_run
    from ..training.trainer import PoaTrainer

    # before the data is opened and the model made, which takes a while
    check_run(recipe.model, recipe.training)
    training = recipe.training
    find_checkpoint(Path(training.output_dir), training.resume_from_checkpoint, training.overwrite_output_dir)
    dataset = open_dataset(
        recipe.data.dataset_name, recipe.data.dataset_config_name, recipe.data.dataset_split, recipe.data.streaming
    )
    callbacks = [_SaveRecipe(recipe), *_evaluation(recipe)]
    set_seed(recipe.training.seed)
    model = PoaForPreTraining(recipe.model)
    if recipe.init_from:
        from ..warm_start.defaults import start_run

        start_run(model, recipe.init_from, recipe.checkpoint, training, recipe.evaluation.eval_steps)
    trainer = PoaTrainer(model, recipe.training, train_dataset=dataset, callbacks=callbacks)
    trainer.train()
    trainer.accelerator.state.destroy_process_group()


def _evaluation(recipe: Recipe) -> list[TrainerCallback]:
    options = recipe.evaluation
    if options.eval_steps is None:
        return []
    from ..evaluation.callback import KnnEvaluationCallback, WarmStartGuard
    from ..evaluation.splits import open_splits

    own = options.eval_dataset_name is None
    data = open_splits(
        recipe.data.dataset_name if own else options.eval_dataset_name,
        recipe.data.dataset_config_name if own else options.eval_dataset_config_name,
        options.eval_train_split,
        options.eval_test_split,
        max_train_images=options.eval_max_train_images,
        max_test_images=options.eval_max_test_images,
    )
    sizes = options.eval_sizes.split(",") if options.eval_sizes else None
    callback = WarmStartGuard if recipe.init_from else KnnEvaluationCallback
    return [callback(data, options.eval_steps, sizes, options.eval_k)]


class _SaveRecipe(TrainerCallback):
    """Keeps the resolved configuration with the run, once its folder is known to be free."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe

    def on_train_begin(self, args, state, control, **kwargs):
        from ..runs.atomic import write_text
        from ..runs.layout import RunFolder

        if state.is_world_process_zero:
            write_text(RunFolder(Path(args.output_dir)).recipe, self.recipe.to_yaml())


def extract(argv: list[str]) -> None:
    """`poa extract RUN --size small|384x12|all --output DIR`"""
    from ..publishing.card.facts import CardFacts
    from ..publishing.export import extract_all
    from ..runs.load import load_run, run_processor

    parser = CommandParser(
        prog="poa extract", description="Write sizes of a run's teacher as stock transformers checkpoints."
    )
    parser.add_argument("run", help="output_dir of a run, one of its checkpoints, or any saved PoaForPreTraining")
    parser.add_argument("--size", required=True, help="a name (small), a size (384x12), several with commas, or all")
    parser.add_argument("--output", required=True, type=Path, help="folder of the model; of several: of their folders")
    parser.add_argument(
        "--format", help="what to write: a ViT as dinov2 or vit, a ResNet as gn_resnet or timm, any as onnx"
    )
    parser.add_argument(
        "--onnx_batch", type=int, help="images that an ONNX model takes at a time (default: any number)"
    )
    parser.add_argument("--license", help="licence of the weights, for the card: an identifier of the Hub")
    parser.add_argument("--overwrite", action="store_true", help="replace models that are there already")
    args = parser.parse_args(argv)
    model = load_run(args.run)
    space = model.config.backbone_config.space
    several = args.size == "all" or "," in args.size
    sizes = list(space) if args.size == "all" else [space.resolve(name) for name in args.size.split(",")]
    outputs = {args.output / str(size) if several else args.output: size for size in sizes}
    options = {} if args.onnx_batch is None else {"onnx_batch": args.onnx_batch}
    facts = CardFacts.read(model, args.run, license=args.license)
    extracted = extract_all(model, outputs, args.format, run_processor(args.run), args.overwrite, facts, **options)
    for output, parameters in extracted:
        print(f"{outputs[output]}: {parameters:,} parameters -> {output}")


def evaluate(argv: list[str]) -> None:
    """`poa evaluate RUN_OR_CHECKPOINT --dataset_name D [--sizes ...] [--tasks ...]`"""
    from .evaluate import evaluate

    evaluate(argv)


def select(argv: list[str]) -> None:
    """`poa select RUN [--max_params 30M] [--max_flops 5G] [--max_latency_ms 4]`"""
    from .select import select

    select(argv)


def report(argv: list[str]) -> None:
    """`poa report RUN [--output DIR] [--dataset_name D]`"""
    from .report import report

    report(argv)


def convert(argv: list[str]) -> None:
    """`poa convert teacher_checkpoint.pth --family vit|swin|resnet --output DIR`"""
    from .convert import convert

    convert(argv)


def push(argv: list[str]) -> None:
    """`poa push RUN --size small|384x12,448x14|--all --namespace me`"""
    from .push import push

    push(argv)


def _fail(message: str, status: int = 2) -> int:
    print(f"poa: {message}", file=sys.stderr)
    return status


_USAGE = """usage: poa COMMAND ...

  poa pretrain [--config FILE.yaml] [--key value ...]        pre-train an elastic model without labels
  poa extract RUN --size small|384x12|all --output DIR       write sizes as stock transformers checkpoints
  poa evaluate RUN --dataset_name D [--sizes all]            measure sizes: k-NN, linear probe, ...
  poa select RUN --max_params 30M --max_latency_ms 4         the best size within a budget
  poa report RUN                                             one page on a run: quality, cost, losses, pictures
  poa convert CHECKPOINT.pth --family vit --output DIR       the authors' weights as the model of a finished run
  poa push RUN --size small|--all --namespace me             publish sizes and the supernet on the Hub

poa COMMAND --help lists the options of a command."""


if __name__ == "__main__":
    sys.exit(main())
