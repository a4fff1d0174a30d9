"""Fine-tune an extracted size, of any family, for object detection by an RT-DETR on its backbone.

    python examples/finetune_detection.py --model poa-vit-s --output_dir runs/boxes   # drawn images of textures
    python examples/finetune_detection.py ... --from_scratch                          # the same, random weights
    python examples/finetune_detection.py --model poa-vit-s --output_dir runs/masks --dataset_name my/masks \\
        --labels coverall mask gloves --image_size 640 --max_steps 20000 --learning_rate 1e-4 \\
        --head_size 256 --head_layers 6 --num_queries 300             # the RT-DETR of its authors, for a dataset

A dataset has the columns `image` and `objects`: {"bbox": [[left, top, width, height], ...] in pixels, "category":
[class number, ...]}. The mean average precision is COCO's (`map`, `map_50`, `map_75`), on --eval_split.

RT-DETR fuses maps that halve from one to the next: the last three of a Swin or ResNet, the last one of a ViT. Its loss
needs scipy. Afterwards `pipeline("object-detection", OUTPUT_DIR)` works; for a GroupNorm ResNet, `import poa_hf` first.
"""

import sys
from dataclasses import dataclass

import torch
from datasets import load_dataset
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    HfArgumentParser,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessorPil,
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
    head_size: int = HfArg(default=64, help="Channels of the RT-DETR.")
    head_layers: int = HfArg(default=2, help="Layers of its decoder.")
    num_queries: int = HfArg(default=20, help="Most objects that it finds in an image.")
    backbone_rate: float = HfArg(default=0.3, help="The backbone's learning rate over the head's.")
    from_scratch: bool = HfArg(default=False, help="Random weights, and one learning rate for all.")


def load_data(args):  # training and evaluation data
    if args.dataset_name is None:
        return [drawn_scenes(2000, seed=2_000_001), drawn_scenes(400, seed=2_000_002)]
    try:
        data = load_dataset(args.dataset_name, split=[args.train_split, args.eval_split])
    except (ValueError, OSError) as error:  # names the splits that exist
        sys.exit(f"{args.dataset_name} cannot be loaded: {error}")
    if not {"image", "objects"} <= set(data[0].column_names):
        sys.exit(f"{args.dataset_name} needs the columns image and objects, and has {data[0].column_names}.")
    highest = max((label for part in data for objects in part["objects"] for label in objects["category"]), default=0)
    if highest >= len(args.labels):
        sys.exit(
            f"{args.dataset_name} has the class {highest}, which --labels does not name: give {highest + 1} names."
        )
    return data


def load_model(args):
    labels = dict(id2label=dict(enumerate(args.labels)), label2id={name: i for i, name in enumerate(args.labels)})
    sizes = dict.fromkeys(("d_model", "encoder_hidden_dim"), args.head_size)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 4 * args.head_size)
    try:
        config, stored = AutoConfig.from_pretrained(args.model), AutoImageProcessor.from_pretrained(args.model)
        pyramid = not hasattr(config, "patch_size") or hasattr(config, "embed_dim")  # ResNet, Swin
        config.out_indices = range(1, len(config.stage_names))[-3 if pyramid else -1 :]  # 0 is the stem
        maps = len(config.out_indices)
        levels = dict(encoder_in_channels=maps * [0], encode_proj_layers=[maps - 1], num_feature_levels=max(maps, 2),
                      decoder_in_channels=maps * [args.head_size], feat_strides=[8, 16, 32][-maps:])  # fmt: skip
        model = RTDetrForObjectDetection(RTDetrConfig(
            backbone_config=config, num_queries=args.num_queries, num_denoising=args.num_queries,
            decoder_layers=args.head_layers, **sizes, **levels, **labels))  # fmt: skip
        # not AutoBackbone.from_pretrained, which asks the Hub even for a local folder
        load = type(model.model.backbone.model).from_pretrained
        backbone, info = load(args.model, config=config, dtype=torch.float32, output_loading_info=True)
    except (ValueError, OSError, AttributeError) as error:
        sys.exit(f"{args.model} is no backbone (`poa extract` writes one): {str(error).splitlines()[0]}")
    # a Swin's backbone has norms that its base model lacks; anything else would silently stay random
    if lost := {name for name in info["missing_keys"] if not name.startswith("hidden_states_norms.")}:
        sys.exit(f"{args.model} lacks {len(lost)} weights of the backbone, {min(lost)} among them.")
    if not args.from_scratch:
        model.model.backbone.model = backbone
    size, look = dict.fromkeys(("height", "width"), args.image_size), dict(do_normalize=True)
    look |= dict(image_mean=stored.image_mean, image_std=stored.image_std)
    return model, RTDetrImageProcessorPil(size=size, **look)


@torch.no_grad()
def evaluate(model, processor, data, batch_size):
    """COCO's mean average precision on a dataset."""
    found, true = [], []
    for start in range(0, len(data), batch_size):
        rows = [data[i] for i in range(start, min(start + batch_size, len(data)))]
        images = [row["image"].convert("RGB") for row in rows]
        outputs = model.eval()(**processor(images, return_tensors="pt").to(model.device))
        sizes = [(image.height, image.width) for image in images]
        found += processor.post_process_object_detection(outputs, threshold=0, target_sizes=sizes)
        for objects in (row["objects"] for row in rows):
            boxes = [[left, top, left + width, top + height] for left, top, width, height in objects["bbox"]]
            true.append({"boxes": boxes, "labels": objects["category"]})
    result = average_precision([{k: v.cpu() for k, v in objects.items()} for objects in found], true)
    return {name: value for name, value in result.items() if not name[-1].isdigit() or name in ("map_50", "map_75")}


def main(argv=None):
    parser = HfArgumentParser((Arguments, TrainingArguments))
    parser.set_defaults(max_steps=600, per_device_train_batch_size=16, per_device_eval_batch_size=16, warmup_steps=0.05,
                        learning_rate=1e-3, lr_scheduler_type="cosine", weight_decay=1e-4, max_grad_norm=0.1,
                        logging_steps=50, save_total_limit=1, remove_unused_columns=False)  # fmt: skip
    args, training = parser.parse_args_into_dataclasses(argv)
    set_seed(training.seed)  # Trainer would seed after the random weights are made
    model, processor = load_model(args)
    train, evaluation = load_data(args)

    def collate(rows):
        annotations = [{"image_id": i, "annotations": []} for i in range(len(rows))]
        for row, target in zip(rows, annotations, strict=True):
            for box, category in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True):
                target["annotations"].append({"bbox": box, "category_id": category, "area": box[2] * box[3]})
        batch = processor([row["image"].convert("RGB") for row in rows], annotations=annotations, return_tensors="pt")
        return {"pixel_values": batch["pixel_values"], "labels": [dict(target) for target in batch["labels"]]}

    heads = [weight for name, weight in model.named_parameters() if not name.startswith("model.backbone.")]
    rate = training.learning_rate * (1 if args.from_scratch else args.backbone_rate)
    groups = [{"params": heads}, {"params": model.model.backbone.parameters(), "lr": rate}]
    optimizer = torch.optim.AdamW(groups, lr=training.learning_rate, weight_decay=training.weight_decay)
    trainer = Trainer(model, training, train_dataset=train, data_collator=collate, processing_class=processor,
                      optimizers=(optimizer, None))  # fmt: skip
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()  # with its image processor
    metrics = evaluate(model, processor, evaluation, training.per_device_eval_batch_size)
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)  # eval_results.json


if __name__ == "__main__":
    main()
