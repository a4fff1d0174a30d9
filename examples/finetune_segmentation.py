"""Fine-tune an extracted size, of any family, for semantic segmentation by a UPerNet on its backbone.

    python examples/finetune_segmentation.py --model poa-vit-s --output_dir runs/scenes --min_crop 0.9  # drawn textures
    python examples/finetune_segmentation.py --model poa-vit-s --dataset_name my/camvid --output_dir runs/camvid \\
        --labels sky building pole road pavement tree sign fence car pedestrian bicyclist --image_size 352 480
    python examples/finetune_segmentation.py ... --from_scratch   # the same architecture, random weights

The data: a folder or Hub dataset with the columns `image` and `mask` (class numbers). Numbers beyond the labels are
ignored in loss and mean IoU, which is taken at the masks' own size, whatever --image_size is (ViT: multiples of the
patch size). `pipeline("image-segmentation", OUTPUT_DIR)` works afterwards; for ResNets, `import poa_hf` first.
"""

import random
import sys
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from datasets import load_dataset
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    HfArgumentParser,
    SegformerImageProcessorPil,
    Trainer,
    TrainingArguments,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    set_seed,
)
from transformers.hf_argparser import HfArg

from poa_hf.data.scenes import SCENE_CLASSES, drawn_scenes


@dataclass
class Arguments:
    model: str = HfArg(help="Folder or Hub name of an extracted model.")
    dataset_name: str | None = HfArg(default=None, help="Folder or Hub name of a dataset; by default, drawn images.")
    labels: list[str] = HfArg(default_factory=list, help="Names of the classes 0, 1, ... of a dataset's masks.")
    image_size: list[int] = HfArg(default_factory=list, help="Height and width, or one for both; 256 or, drawn, 96.")
    train_split: str = HfArg(default="train", help="Or a part, such as train[:80].")
    eval_split: str = "test"
    min_crop: float = HfArg(default=0.5, help="Smallest share of an image's sides that a training crop shows.")
    head_size: int = HfArg(default=256, help="Channels of the UPerNet.")
    backbone_rate: float = HfArg(default=0.1, help="The backbone's learning rate over the head's.")
    from_scratch: bool = HfArg(default=False, help="Random weights, and one learning rate for all.")


def load_data(args):
    if args.dataset_name is None:
        args.labels, args.image_size = args.labels or [*SCENE_CLASSES], args.image_size or [96]
        return [drawn_scenes(2000, seed=2_000_001), drawn_scenes(400, seed=2_000_002)]
    if not args.labels:
        sys.exit(f"The classes of {args.dataset_name} have no names: give --labels, from class 0 on.")
    try:
        data = load_dataset(args.dataset_name, split=[args.train_split, args.eval_split])
    except (ValueError, OSError) as error:  # names the splits that exist
        sys.exit(f"{args.dataset_name} cannot be loaded: {error}")
    if {"image", "mask"} <= set(data[0].column_names):
        return data
    sys.exit(f"{args.dataset_name} needs the columns image and mask, and has {data[0].column_names}.")


def load_model(args):  # a UPerNet on four stages of the backbone (a ViT's stages are its blocks)
    head = dict(hidden_size=args.head_size, use_auxiliary_head=False, loss_ignore_index=-100)
    labels = dict(id2label=dict(enumerate(args.labels)), label2id={name: i for i, name in enumerate(args.labels)})
    try:
        config, stored = AutoConfig.from_pretrained(args.model), AutoImageProcessor.from_pretrained(args.model)
        config.out_indices = sorted({ceil((len(config.stage_names) - 1) * part / 4) for part in (1, 2, 3, 4)})
        model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config, **head, **labels))
        load = type(model.backbone).from_pretrained  # AutoBackbone's asks the Hub even for a local folder
        backbone, info = load(args.model, config=config, dtype=torch.float32, output_loading_info=True)
    except (ValueError, OSError, AttributeError) as error:
        sys.exit(f"{args.model} is no backbone (`poa extract` writes one): {str(error).splitlines()[0]}")
    # a Swin's backbone has norms that its base model lacks; anything else would silently stay random
    if lost := {name for name in info["missing_keys"] if not name.startswith("hidden_states_norms.")}:
        sys.exit(f"{args.model} lacks {len(lost)} weights of the backbone, {min(lost)} among them.")
    model.backbone = model.backbone if args.from_scratch else backbone
    height, width, *_ = (args.image_size or [256]) * 2
    look = dict(size={"height": height, "width": width}, image_mean=stored.image_mean, image_std=stored.image_std)
    return model, SegformerImageProcessorPil(resample=3, **look)


def random_crop(image, mask, size, min_crop):
    """The same random part of image and mask at `size` (width, height), mirrored half of the time."""
    width, height = (random.uniform(min_crop, 1) * np.array(image.size)).tolist()
    left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
    box = left, top, left + width, top + height
    pair = image.resize(size, resample=3, box=box), mask.resize(size, resample=0, box=box)
    return [picture.transpose(0) for picture in pair] if random.random() < 0.5 else pair


def loss_of(outputs, labels, num_items_in_batch=None):
    """Mean cross-entropy of the pixels that are not ignored (-100), at the size of the labels."""
    logits = F.interpolate(outputs.logits, labels.shape[-2:], mode="bilinear")
    return F.cross_entropy(logits, labels, reduction="sum") / (num_items_in_batch or (labels != -100).sum())


def confusion(logits, labels):
    """Counts of pixels (B, true class, predicted class), which are far smaller to keep than logits."""
    classes, predicted = logits.shape[1], F.interpolate(logits, labels.shape[-2:], mode="bilinear").argmax(1)
    pairs = [(classes * true + guess)[true != -100] for true, guess in zip(labels, predicted, strict=True)]
    return torch.stack([pair.bincount(minlength=classes**2).view(classes, classes) for pair in pairs])


def main(argv=None):
    parser = HfArgumentParser((Arguments, TrainingArguments))
    # UPerNet's BatchNorm fails on a single image, hence drop_last; masks may differ in size, hence an eval batch of 1
    parser.set_defaults(per_device_train_batch_size=8, dataloader_drop_last=True, per_device_eval_batch_size=1,
                        eval_do_concat_batches=False, learning_rate=1e-3, weight_decay=0.05, warmup_steps=0.05,
                        lr_scheduler_type="cosine", save_total_limit=1, remove_unused_columns=False)  # fmt: skip
    args, training = parser.parse_args_into_dataclasses(argv)
    set_seed(training.seed)  # Trainer would seed after the random weights are made
    (train, evaluation), (model, processor) = load_data(args), load_model(args)

    def prepare(rows, augment=False):
        images, masks = [image.convert("RGB") for image in rows["image"]], rows["mask"]
        if augment:
            size = processor.size["width"], processor.size["height"]
            pairs = zip(images, masks, strict=True)
            images, masks = zip(*(random_crop(*pair, size, args.min_crop) for pair in pairs), strict=True)
        pixels = processor(list(images), do_resize=not augment, return_tensors="pt").pixel_values
        labels = (torch.from_numpy(np.array(mask).astype(np.int64)) for mask in masks)
        return {"pixel_values": list(pixels), "labels": [x.where(x < len(args.labels), -100) for x in labels]}

    def mean_iou(output):
        counts = np.concatenate(output.predictions).sum(0).astype(float)
        union = counts.sum(0) + counts.sum(1) - (hits := counts.diagonal())
        iou = {f"iou_{args.labels[i]}": hits[i] / union[i] for i in union.nonzero()[0]}  # others never occur
        return {"mean_iou": np.mean([*iou.values()]), "pixel_accuracy": hits.sum() / counts.sum(), **iou}

    rate = training.learning_rate * (1 if args.from_scratch else args.backbone_rate)
    groups = [{"params": model.decode_head.parameters()}, {"params": model.backbone.parameters(), "lr": rate}]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay)
    trainer = Trainer(
        model, training, train_dataset=train.with_transform(lambda rows: prepare(rows, augment=True)),
        eval_dataset=evaluation.with_transform(prepare), processing_class=processor, compute_loss_func=loss_of,
        preprocess_logits_for_metrics=confusion, compute_metrics=mean_iou, optimizers=(optimizer, None))  # fmt: skip
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()  # with its image processor
    training.dataloader_drop_last = False  # would also drop images from the evaluation
    trainer.log_metrics("eval", metrics := trainer.evaluate())
    trainer.save_metrics("eval", metrics)  # eval_results.json


if __name__ == "__main__":
    main()
