"""Fine-tune an extracted size, of any family, for instance segmentation by a Mask2Former on its backbone.

    python examples/finetune_instances.py --model poa-swin-t --output_dir runs/objects   # drawn images of textures
    python examples/finetune_instances.py ... --from_scratch                             # the same, random weights
    python examples/finetune_instances.py --model poa-swin-t --output_dir runs/cells --dataset_name my/cells \\
        --labels nucleus border --image_size 384 --max_steps 20000 --learning_rate 1e-4 \\
        --head_size 256 --head_layers 9 --num_queries 100       # the Mask2Former of its authors, for a dataset

A dataset has the columns `image`, `instances` (an image of object numbers, 0 for none) and `objects`: {"category":
[class number of object 1, of object 2, ...]}. The mean average precision of the masks is COCO's (`map`, `map_50`,
`map_75`), on --eval_split. Afterwards `pipeline("image-segmentation", OUTPUT_DIR)` works; for a GroupNorm ResNet,
`import poa_hf` first. The loss needs scipy.
"""

import sys
from dataclasses import dataclass

import numpy as np
import torch
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    HfArgumentParser,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.hf_argparser import HfArg

from poa_hf.data.scenes import drawn_scenes
from poa_hf.data.textures import TEXTURE_NAMES
from poa_hf.evaluation.statistics.average_precision import average_precision


@dataclass
class Arguments:
    model: str = HfArg(help="Folder or Hub name of an extracted model.")
    dataset_name: str | None = HfArg(default=None, help="Folder or Hub name of a dataset; by default, drawn images.")
    train_split: str = "train"
    eval_split: str = "test"
    labels: list[str] = HfArg(default_factory=lambda: [*TEXTURE_NAMES], help="Names of the classes 0, 1, ...")
    image_size: int = HfArg(default=96, help="Side in pixels, a multiple of the last map's stride.")
    head_size: int = HfArg(default=64, help="Channels of the Mask2Former, a multiple of 32.")
    head_layers: int = HfArg(default=3, help="Layers of its decoder.")
    num_queries: int = HfArg(default=12, help="Most objects that it finds in an image.")
    backbone_rate: float = HfArg(default=0.1, help="The backbone's learning rate over the head's.")
    from_scratch: bool = HfArg(default=False, help="Random weights, and one learning rate for all.")


def load_data(args):  # training and evaluation data
    if args.dataset_name is None:
        return [drawn_scenes(2000, seed=2_000_001), drawn_scenes(400, seed=2_000_002)]
    try:
        data = load_dataset(args.dataset_name, split=[args.train_split, args.eval_split])
    except (ValueError, OSError) as error:  # names the splits that exist
        sys.exit(f"{args.dataset_name} cannot be loaded: {error}")
    if {"image", "instances", "objects"} <= set(data[0].column_names):
        return data
    sys.exit(f"{args.dataset_name} needs the columns image, instances and objects, and has {data[0].column_names}.")


def load_model(args):
    labels = dict(id2label=dict(enumerate(args.labels)), label2id={name: i for i, name in enumerate(args.labels)})
    sizes = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), args.head_size)
    sizes |= dict.fromkeys(("encoder_feedforward_dim", "dim_feedforward"), 4 * args.head_size)
    try:
        config, stored = AutoConfig.from_pretrained(args.model), AutoImageProcessor.from_pretrained(args.model)
        config.out_indices = range(len(config.stage_names))[-4:]
        model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(
            backbone_config=config, num_queries=args.num_queries, decoder_layers=args.head_layers, encoder_layers=2,
            train_num_points=1024, **sizes, **labels))  # fmt: skip
        place = model.model.pixel_level_module
        # not AutoBackbone.from_pretrained, which asks the Hub even for a local folder
        load = type(place.encoder).from_pretrained
        backbone, info = load(args.model, config=config, dtype=torch.float32, output_loading_info=True)
    except (ValueError, OSError, AttributeError) as error:
        sys.exit(f"{args.model} is no backbone (`poa extract` writes one): {str(error).splitlines()[0]}")
    # a Swin's backbone has norms that its base model lacks; anything else would silently stay random
    if lost := {name for name in info["missing_keys"] if not name.startswith("hidden_states_norms.")}:
        sys.exit(f"{args.model} lacks {len(lost)} weights of the backbone, {min(lost)} among them.")
    place.encoder = place.encoder if args.from_scratch else backbone
    look = dict(image_mean=stored.image_mean, image_std=stored.image_std, do_reduce_labels=False)
    return model, Mask2FormerImageProcessorPil(size=dict.fromkeys(("height", "width"), args.image_size), **look)


def masks_of(row, size=None):  # (objects, height, width), by the numbers of the objects
    numbers = np.array(row["instances"].resize(size, resample=0) if size else row["instances"])
    return numbers == np.arange(1, len(row["objects"]["category"]) + 1)[:, None, None]


@torch.no_grad()
def evaluate(model, processor, data, batch_size):
    """COCO's mean average precision of the masks on a dataset."""
    found, true = [], []
    for start in range(0, len(data), batch_size):
        rows = [data[i] for i in range(start, min(start + batch_size, len(data)))]
        pixels = processor([row["image"].convert("RGB") for row in rows], return_tensors="pt").pixel_values
        outputs = model.eval()(pixel_values=pixels.to(model.device))
        for row, logits, masks in zip(rows, outputs.class_queries_logits, outputs.masks_queries_logits, strict=True):
            size = row["image"].height, row["image"].width
            masks = torch.nn.functional.interpolate(masks[None], size, mode="bilinear")[0].sigmoid()
            inside = masks > 0.5
            sure = (masks * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
            scores, labels = logits.softmax(-1)[:, :-1].max(-1)  # the last is "no object"
            found.append({"masks": inside.cpu(), "labels": labels.cpu(), "scores": (scores * sure).cpu()})
            true.append({"masks": masks_of(row), "labels": row["objects"]["category"]})
    result = average_precision(found, true)
    return {name: result[name] for name in ("map", "map_50", "map_75")}


def main(argv=None):
    parser = HfArgumentParser((Arguments, TrainingArguments))
    parser.set_defaults(max_steps=600, per_device_train_batch_size=16, per_device_eval_batch_size=16, warmup_steps=0.05,
                        learning_rate=1e-3, lr_scheduler_type="cosine", weight_decay=0.05, max_grad_norm=0.1,
                        logging_steps=50, save_total_limit=1, remove_unused_columns=False)  # fmt: skip
    args, training = parser.parse_args_into_dataclasses(argv)
    set_seed(training.seed)  # Trainer would seed after the random weights are made
    model, processor = load_model(args)
    train, evaluation = load_data(args)

    def collate(rows):
        pixels = processor([row["image"].convert("RGB") for row in rows], return_tensors="pt").pixel_values
        masks = [torch.from_numpy(masks_of(row, (args.image_size, args.image_size))).float() for row in rows]
        classes = [torch.tensor(row["objects"]["category"]) for row in rows]
        return {"pixel_values": pixels, "mask_labels": masks, "class_labels": classes}

    encoder = model.model.pixel_level_module.encoder
    rate = training.learning_rate * (1 if args.from_scratch else args.backbone_rate)
    inside = {id(weight) for weight in encoder.parameters()}
    heads = [weight for weight in model.parameters() if id(weight) not in inside]
    groups = [{"params": heads}, {"params": encoder.parameters(), "lr": rate}]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay)
    trainer = Trainer(model, training, train_dataset=train, data_collator=collate, processing_class=processor,
                      optimizers=(optimizer, None))  # fmt: skip
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()  # with its image processor
    trainer.log_metrics("eval", metrics := evaluate(model, processor, evaluation, training.per_device_eval_batch_size))
    trainer.save_metrics("eval", metrics)  # eval_results.json


if __name__ == "__main__":
    main()
