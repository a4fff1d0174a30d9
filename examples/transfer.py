"""Transfer chosen sizes of a run to a list of datasets, by fine-tuning and by a linear probe, in one table.

    python examples/transfer.py                                # the quickstart's sizes, on the built-in textures
    python examples/transfer.py --run runs/mine --sizes small base --datasets uoft-cs/cifar10 uoft-cs/cifar100 \\
        nelorth/oxford-flowers --rates 1e-4 3e-4 1e-3 --seeds 0 1 2 --num_train_epochs 100 --output_dir runs/transfer
    python examples/transfer.py ... --starts extracted random  # and the same sizes with random weights

Fine-tuning is finetune_classification.py's. Its learning rate is chosen on --holdout of the train split, with the first
seed; then each seed trains on the whole split and is tested. Every option of TrainingArguments holds for each training.
DINOv3 has no classifier in transformers: give --methods linear.

Results are kept in OUTPUT_DIR/cells, one file each: the same command goes on where it was stopped, or where a cell
failed. The table is printed and written to OUTPUT_DIR/transfer.md, all numbers to transfer.json.

Papers of this kind transfer to CIFAR-10, CIFAR-100, iNaturalist 2018 and 2019, Flowers-102 and Stanford Cars, from
ImageNet-1K. Those that are not on the Hub in a format of `datasets` can be folders of images.
"""

import copy
import hashlib
import json
import sys
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from time import perf_counter

import finetune_classification as classification
from transformers import AutoConfig, AutoImageProcessor, AutoModel, HfArgumentParser, TrainingArguments, set_seed
from transformers.hf_argparser import HfArg
from transformers.utils import logging

from poa_hf import evaluate_sizes
from poa_hf.data.processor import usual_processor
from poa_hf.evaluation.labelled import LabelledImages
from poa_hf.evaluation.splits import EvaluationData
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import TaskOptions
from poa_hf.evaluation.transfer import (
    KeptResults,
    TransferRow,
    load_splits,
    measure,
    split_classes,
    transfer_table,
    write_rows,
)
from poa_hf.runs.load import load_run, run_processor

METHODS, STARTS = ("finetune", "linear"), ("extracted", "random")
# TrainingArguments that change no result, and those that have a part in the name of a cell
IRRELEVANT = tuple("output_dir log disable_tqdm report_to run_name push hub save seed learning_rate".split())


@dataclass
class Arguments:
    run: str = HfArg(default="runs/quickstart", help="Folder of a run.")
    sizes: list[str] = HfArg(default_factory=list, help="Names, or such as 384x12; the named sizes by default.")
    datasets: list[str] = HfArg(default_factory=lambda: ["textures"], help="Folders or Hub names, or textures.")
    methods: list[str] = HfArg(default_factory=lambda: [*METHODS], help="finetune, linear or both.")
    starts: list[str] = HfArg(default_factory=lambda: ["extracted"], help="extracted, random or both.")
    rates: list[float] = HfArg(default_factory=lambda: [1e-3, 4e-3], help="Learning rates of fine-tuning.")
    seeds: list[int] = HfArg(default_factory=lambda: [0, 1], help="Seeds of the trainings.")
    holdout: float = HfArg(default=0.1, help="Share of each class on which the learning rate is chosen.")
    layer_decay: float = HfArg(default=0.75, help="Each block's learning rate over the next one's.")
    max_train_images: int | None = HfArg(default=None, help="Use a random part of each train split.")
    max_test_images: int | None = HfArg(default=None, help="Use a random part of each test split.")


def fine_tuned(args, training, model, is_random, data, rate, seed):
    training = copy.copy(training)
    training.learning_rate, training.seed, training.output_dir = rate, seed, f"{training.output_dir}/trainer"
    decay = 1.0 if is_random else args.layer_decay  # random layers have learnt nothing that a small rate would keep
    options = classification.Arguments(model, "", from_scratch=is_random, layer_decay=decay, trust_remote_code=True)
    return classification.fine_tune(options, training, *data).evaluate()["eval_accuracy"]


def probed(model, is_random, data, seed):  # a linear classifier of frozen features, which chooses its own rate
    set_seed(seed)
    made = AutoModel.from_config(AutoConfig.from_pretrained(model)) if is_random else AutoModel.from_pretrained(model)
    subject = Subject(model, made.eval(), AutoImageProcessor.from_pretrained(model))
    images = EvaluationData(LabelledImages(data[1], name="test"), LabelledImages(data[0]))
    return evaluate_sizes(subject, images, None, ["linear"], TaskOptions(seed=seed), quiet=True)[0].value


def transfer(args, training):
    """The rows of the table, one for each dataset, size, start and method, and how many trainings failed."""
    folder, run, load = Path(training.output_dir), load_run(args.run), cache(load_splits)
    space, rows, results = run.config.backbone_config.space, [], KeptResults(folder / "cells")
    logging.set_verbosity_error()  # a classifier is new, as it should be
    common = {key: value for key, value in training.to_dict().items() if not key.startswith(IRRELEVANT)}
    common |= {key: getattr(args, key) for key in ("holdout", "layer_decay", "max_train_images", "max_test_images")}
    sizes = args.sizes or space.named or [space.smallest, space.full]
    models = {size: folder / "models" / str(size) for size in map(space.resolve, sizes)}
    parameters = {}
    for size, path in models.items():  # without the cards of `poa extract`, which take longer than these trainings
        extracted = run.teacher.extract(size)
        parameters[size] = extracted.num_parameters()
        extracted.save_pretrained(path)
        (run_processor(args.run) or usual_processor(run.config.backbone_config)).save_pretrained(path)
    for name, size, start, method in product(args.datasets, models, args.starts, args.methods):
        model = models[size]
        weights = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
        settings = json.loads(json.dumps({**common, "dataset": name, "weights": weights}, default=str))

        def train(rate, seed, is_choice, name=name, model=str(model), is_random=start == "random"):
            data = load(name, args.max_train_images, args.max_test_images)
            data = split_classes(data[0], args.holdout) if is_choice else data
            start = perf_counter()
            if rate is None:
                accuracy = probed(model, is_random, data, seed)
            else:
                accuracy = fine_tuned(args, training, model, is_random, data, rate, seed)
            return accuracy, perf_counter() - start

        cell = f"{name.strip('/').replace('/', '_')}-{size}-{start}-{method}"
        found = measure(results, cell, settings, train, args.rates if method == "finetune" else None, args.seeds)
        rows.append(TransferRow(name, str(size), parameters[size], start, method, **found))
    return rows, results.failed


def main(argv=None):
    parser = HfArgumentParser((Arguments, TrainingArguments))
    parser.set_defaults(output_dir="runs/transfer", num_train_epochs=5, per_device_train_batch_size=128,
                        per_device_eval_batch_size=128, weight_decay=0.05, lr_scheduler_type="cosine",
                        warmup_steps=0.05, save_strategy="no", logging_strategy="no", disable_tqdm=True,
                        remove_unused_columns=False)  # fmt: skip
    args, training = parser.parse_args_into_dataclasses(argv)
    for option, given, known in (("methods", args.methods, METHODS), ("starts", args.starts, STARTS)):
        if unknown := [value for value in given if value not in known]:
            sys.exit(f"--{option} {unknown[0]} does not exist: give {' or '.join(known)}, or both.")
    try:
        rows, failed = transfer(args, training)
    except (ValueError, OSError) as error:  # no run, or a size that it lacks
        sys.exit(f"transfer: {error}")
    folder = Path(training.output_dir)
    write_rows(folder / "transfer.json", rows)
    (folder / "transfer.md").write_text(transfer_table(rows))
    print(f"\n{transfer_table(rows)}")
    if failed:
        sys.exit(f"{failed} trainings failed, as said above: the same command tries them again.")


if __name__ == "__main__":
    main()
