"""Fine-tune an extracted size, of any family, for semantic segmentation by a UPerNet on its backbone.

    python examples/finetune_segmentation.py --model poa-vit-s --dataset_name my/camvid --output_dir runs/camvid \\
        --labels sky building pole road pavement tree sign fence car pedestrian bicyclist --image_size 352 480
    python examples/finetune_segmentation.py ... --from_scratch   # the same architecture, random weights

The data: a folder or Hub dataset with the columns `image` and `mask` (class numbers). Numbers beyond the labels are
ignored, in the loss and in the mean IoU: 11 in CamVid, 255 elsewhere. The mean IoU is taken at the masks' own size,
whatever --image_size the model computes with (ViT: multiples of the patch size). Afterwards
`pipeline("image-segmentation", OUTPUT_DIR)` works; of a GroupNorm ResNet after `import poa_hf`.
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

import poa_hf  # noqa: F401  makes GroupNorm ResNets known to transformers; other families don't need it


@dataclass
class Arguments:
    model: str = HfArg(help="Folder or Hub name of an extracted model.")
    dataset_name: str = HfArg(help="Folder or Hub name of a dataset.")
    labels: list[str] = HfArg(help="Names of the classes 0, 1, ... of the masks.")
    image_size: list[int] = HfArg(default_factory=lambda: [256, 256], help="Height and width, or one for both.")
    train_split: str = HfArg(default="train", help="Or a part, such as train[:80].")
    eval_split: str = "test"
    min_crop: float = HfArg(default=0.5, help="Smallest share of an image's sides that a training crop shows.")
    head_size: int = HfArg(default=256, help="Channels of the UPerNet.")
    backbone_rate: float = HfArg(default=0.1, help="The backbone's learning rate over the head's.")
    from_scratch: bool = HfArg(default=False, help="Random weights, and one learning rate for all.")


def load_data(args):
    try:
        data = load_dataset(args.dataset_name, split=[args.train_split, args.eval_split])
    except (ValueError, OSError) as error:  # of splits, see --train_split and --eval_split
        sys.exit(f"{args.dataset_name} can't be loaded: {error}")
    if {"image", "mask"} <= set(data[0].column_names):
        return data
    sys.exit(f"{args.dataset_name} needs the columns image and mask, and has {data[0].column_names}.")


def load_model(args):  # -> segmenter on four stages of the backbone (a ViT's are its blocks), image processor
    head = dict(hidden_size=args.head_size, use_auxiliary_head=False, loss_ignore_index=-100)
    labels = dict(id2label=dict(enumerate(args.labels)), label2id={name: i for i, name in enumerate(args.labels)})
    try:
        config, own = AutoConfig.from_pretrained(args.model), AutoImageProcessor.from_pretrained(args.model)
        config.out_indices = sorted({ceil((len(config.stage_names) - 1) * part / 4) for part in (1, 2, 3, 4)})
        model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config, **head, **labels))
        # AutoBackbone.from_pretrained asks the Hub even for a local folder; the class that UPerNet chose doesn't
        load = type(model.backbone).from_pretrained
        backbone, info = load(args.model, config=config, dtype=torch.float32, output_loading_info=True)
    except (ValueError, OSError, AttributeError) as error:
        sys.exit(f"{args.model} is no backbone (`poa extract` writes one): {str(error).splitlines()[0]}")
    # norms that only a Swin's backbone has start as they are; anything else would stay random with no error
    if lost := {name for name in info["missing_keys"] if not name.startswith("hidden_states_norms.")}:
        sys.exit(f"{args.model} lacks {len(lost)} weights of the backbone, {min(lost)} among them.")
    model.backbone = model.backbone if args.from_scratch else backbone
    size = dict(zip(("height", "width"), args.image_size * 2, strict=False))
    processor = SegformerImageProcessorPil(size=size, resample=3, image_mean=own.image_mean, image_std=own.image_std)
    return model, processor


def random_crop(image, mask, size, min_crop):
    """The same random part of both, at (width, height), mirrored half of the time; each pixel keeps its class."""
    share = random.uniform(min_crop, 1)
    width, height = share * image.width, share * image.height
    left, top = random.uniform(0, image.width - width), random.uniform(0, image.height - height)
    box = left, top, left + width, top + height
    pair = image.resize(size, resample=3, box=box), mask.resize(size, resample=0, box=box)
    return [picture.transpose(0) for picture in pair] if random.random() < 0.5 else pair


def loss_of(outputs, labels, num_items_in_batch=None):
    """Cross-entropy at the size of the labels, mean over all that aren't ignored (-100, for Trainer and torch)."""
    logits = F.interpolate(outputs.logits, labels.shape[-2:], mode="bilinear")
    count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return F.cross_entropy(logits, labels, reduction="sum") / count


def confusion(logits, labels):
    """Pixels of each class taken for each class, (B, true, predicted): far smaller to keep than logits."""
    classes, predicted = logits.shape[1], F.interpolate(logits, labels.shape[-2:], mode="bilinear").argmax(1)
    pairs = [(classes * true + guess)[true != -100] for true, guess in zip(labels, predicted, strict=True)]
    return torch.stack([pair.bincount(minlength=classes**2).view(classes, classes) for pair in pairs])


def main(argv=None):
    parser = HfArgumentParser((Arguments, TrainingArguments))
    # drop_last: UPerNet's BatchNorm fails on a single image; masks to evaluate on may differ in size: one at a time
    parser.set_defaults(per_device_train_batch_size=8, dataloader_drop_last=True, per_device_eval_batch_size=1,
                        eval_do_concat_batches=False, learning_rate=1e-3, weight_decay=0.05, warmup_steps=0.05,
                        lr_scheduler_type="cosine", save_total_limit=1, remove_unused_columns=False)  # fmt: skip
    args, training = parser.parse_args_into_dataclasses(argv)
    set_seed(training.seed)  # here, as Trainer seeds too late for weights that start random
    train, evaluation = load_data(args)
    model, processor = load_model(args)

    def prepare(rows, augment=False):
        images, masks = [image.convert("RGB") for image in rows["image"]], rows["mask"]
        if augment:
            size = processor.size["width"], processor.size["height"]
            crops = [random_crop(*pair, size, args.min_crop) for pair in zip(images, masks, strict=True)]
            images, masks = zip(*crops, strict=True)
        pixels = processor(list(images), do_resize=not augment, return_tensors="pt").pixel_values
        labels = (torch.from_numpy(np.array(mask).astype(np.int64)) for mask in masks)
        return {"pixel_values": list(pixels), "labels": [x.where(x < len(args.labels), -100) for x in labels]}

    def mean_iou(output):
        counts = np.concatenate(output.predictions).sum(0).astype(float)
        hits = counts.diagonal()
        union = counts.sum(0) + counts.sum(1) - hits
        iou = {f"iou_{args.labels[i]}": hits[i] / union[i] for i in union.nonzero()[0]}  # else in no mask or prediction
        return {"mean_iou": np.mean([*iou.values()]), "pixel_accuracy": hits.sum() / counts.sum(), **iou}

    rates = {model.decode_head: 1, model.backbone: 1 if args.from_scratch else args.backbone_rate}
    groups = [{"params": part.parameters(), "lr": training.learning_rate * rate} for part, rate in rates.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=training.weight_decay)
    trainer = Trainer(
        model, training, train_dataset=train.with_transform(lambda rows: prepare(rows, augment=True)),
        eval_dataset=evaluation.with_transform(prepare), processing_class=processor, compute_loss_func=loss_of,
        preprocess_logits_for_metrics=confusion, compute_metrics=mean_iou, optimizers=(optimizer, None),
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()  # with its image processor
    training.dataloader_drop_last = False  # it would leave out images in evaluation as well
    trainer.save_metrics("eval", trainer.evaluate())  # eval_results.json


if __name__ == "__main__":
    main()
