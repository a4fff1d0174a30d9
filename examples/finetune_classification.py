"""Fine-tune an extracted size, of any family but DINOv3, for image classification with transformers' Trainer.

    python examples/finetune_classification.py --model poa-vit-s --dataset_name my/images --output_dir runs/images
    python examples/finetune_classification.py ... --from_scratch      # the same architecture, random weights
    accelerate launch examples/finetune_classification.py ... --bf16   # any option of TrainingArguments

The data: a folder or Hub dataset with an Image and a ClassLabel column. poa_hf is not needed; GroupNorm ResNets bring
their own code (--trust_remote_code). Afterwards `pipeline("image-classification", model=OUTPUT_DIR)` works.

Images get the size of pre-training, as the checkpoint's image processor says, or --image_size (ViTs interpolate their
position embeddings, Swins need maps no smaller than their windows). --drop_path_rate sets stochastic depth (ViT, Swin).
"""

import random
import sys
from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np
import torch
from datasets import ClassLabel, Image, load_dataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageClassification,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.hf_argparser import HfArg
from transformers.modeling_layers import GradientCheckpointingLayer


@dataclass
class Arguments:
    model: str = HfArg(help="Folder or Hub name of an extracted model.")
    dataset_name: str = HfArg(help="Folder or Hub name of a dataset.")
    train_split: str = HfArg(default="train", help="Or a part, such as train[:45000].")
    eval_split: str = "test"
    image_size: int | None = HfArg(default=None, help="By default the image processor's.")
    min_crop: float = HfArg(default=0.35, help="Smallest share of an image that a training crop shows.")
    layer_decay: float = HfArg(default=0.75, help="Each block's learning rate over the next one's.")
    drop_path_rate: float | None = HfArg(default=None, help="Stochastic depth; by default the model's.")
    from_scratch: bool = HfArg(default=False, help="Start from random weights.")
    trust_remote_code: bool = HfArg(default=False, help="Run the code that comes with the model.")


def load_data(args):  # training and evaluation data
    try:
        return load_dataset(args.dataset_name, split=[args.train_split, args.eval_split])
    except (ValueError, OSError) as error:  # names the splits that exist
        sys.exit(f"{args.dataset_name} cannot be loaded: {error}")


def load_model(args, classes):
    kwargs = {"trust_remote_code": args.trust_remote_code, "dtype": torch.float32}  # whatever dtype was saved
    try:
        changes = {} if args.drop_path_rate is None else {"drop_path_rate": args.drop_path_rate}
        config = AutoConfig.from_pretrained(args.model, id2label=dict(enumerate(classes)), **changes, **kwargs)
        config.label2id = {name: i for i, name in config.id2label.items()}
        processor = AutoImageProcessor.from_pretrained(args.model)
        if args.from_scratch:
            return AutoModelForImageClassification.from_config(config, **kwargs), processor
        model, info = AutoModelForImageClassification.from_pretrained(
            args.model, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
        )
    except (ValueError, OSError) as error:
        sys.exit(f"{args.model} is no model to fine-tune (`poa extract` writes one): {str(error).splitlines()[0]}")
    # transformers only warns of missing weights, and leaves them random
    if lost := {name for name in info["missing_keys"] if not name.startswith("classifier.")}:
        sys.exit(f"{args.model} lacks {len(lost)} weights of the model, {min(lost)} among them.")
    return model, processor


def layer_wise_groups(model, args, decay):
    """Parameter groups for an optimizer: the classifier's learning rate, times `decay` for each block further down.

    Blocks are what transformers recomputes one by one under activation checkpointing, in every family: the innermost
    GradientCheckpointingLayers. Parameters outside of all blocks belong to the block before (Swin's patch merging), or
    to the embeddings if there is none, or to the classifier (the final norm) after the last.
    """
    layers = [name for name, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)]
    blocks = [name for name in layers if not any(other.startswith(name + ".") for other in layers)]  # first to last
    groups, depth = {}, 0
    for name, parameter in model.named_parameters():
        inside = [i for i, block in enumerate(blocks, start=1) if name.startswith(block + ".")]
        depth = inside[0] if inside else len(blocks) + 1 if depth >= len(blocks) else depth
        key = (len(blocks) + 1 - depth, parameter.ndim > 1)  # no weight decay on biases, norms, LayerScale
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": params, "lr": args.learning_rate * decay**steps, "weight_decay": args.weight_decay * is_matrix}
        for (steps, is_matrix), params in sorted(groups.items(), key=lambda group: group[0])  # Trainer logs the first
    ]


def random_crop(image, size, min_crop):
    """A random part of the image (at least `min_crop` of its area, sides 3:4 to 4:3) at `size`, mirrored at random."""
    area, ratio = random.uniform(min_crop, 1) * image.width * image.height, exp(random.uniform(log(3 / 4), log(4 / 3)))
    width, height = min(sqrt(area * ratio), image.width), min(sqrt(area / ratio), image.height)
    left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
    image = image.resize((size, size), resample=3, box=(left, top, left + width, top + height))
    return image.transpose(0) if random.random() < 0.5 else image  # left to right


def fine_tune(args, training, train, evaluation):
    """Train, and return the Trainer, which holds the model and the evaluation data."""
    set_seed(training.seed)  # Trainer would seed after the random weights are made
    columns = {type(feature): name for name, feature in reversed(train.features.items())}  # first of each type
    if not {Image, ClassLabel} <= set(columns):
        sys.exit(f"{args.dataset_name} needs an Image and a ClassLabel column, and has {train.features}.")
    model, processor = load_model(args, train.features[columns[ClassLabel]].names)
    if size := args.image_size:
        processor.size, processor.crop_size = {"shortest_edge": round(size * 8 / 7)}, {"height": size, "width": size}
    size = processor.crop_size["height"]
    try:
        model(torch.zeros(1, 3, size, size))
    except RuntimeError as error:
        sys.exit(f"{args.model} cannot compute with --image_size {size}: {error}")

    def prepare(rows, augment=False):
        images = [image.convert("RGB") for image in rows[columns[Image]]]
        images = [random_crop(image, size, args.min_crop) if augment else image for image in images]
        pixels = processor(images, do_resize=not augment, do_center_crop=not augment, return_tensors="pt").pixel_values
        return {"pixel_values": list(pixels), "labels": rows[columns[ClassLabel]]}

    trainer = Trainer(
        model, training, train_dataset=train.with_transform(lambda rows: prepare(rows, augment=True)),
        eval_dataset=evaluation.with_transform(prepare), processing_class=processor,
        compute_metrics=lambda output: {"accuracy": float(np.mean(output.predictions.argmax(1) == output.label_ids))},
        optimizers=(torch.optim.AdamW(layer_wise_groups(model, training, args.layer_decay)), None),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    return trainer


def main(argv=None):
    parser = HfArgumentParser((Arguments, TrainingArguments))
    parser.set_defaults(per_device_train_batch_size=64, per_device_eval_batch_size=64, learning_rate=1e-3,
                        weight_decay=0.05, lr_scheduler_type="cosine", warmup_steps=0.05, save_total_limit=1,
                        remove_unused_columns=False)  # fmt: skip
    args, training = parser.parse_args_into_dataclasses(argv)
    trainer = fine_tune(args, training, *load_data(args))
    trainer.save_model()  # with its image processor
    trainer.log_metrics("eval", metrics := trainer.evaluate())  # prints the accuracy
    trainer.save_metrics("eval", metrics)  # eval_results.json


if __name__ == "__main__":
    main()
