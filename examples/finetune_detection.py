"""Fine-tune an extracted size, of any family, for object detection by a DETR on its backbone.

    python examples/finetune_detection.py --model poa-vit-s --output_dir runs/boxes   # four drawn images
    python examples/finetune_detection.py --model poa-vit-s --output_dir runs/masks --dataset_name my/masks \\
        --labels coverall mask gloves --image_size 640 --max_steps 50000 --learning_rate 1e-4 --dropout 0.1 \\
        --head_size 256 --head_layers 6 --num_queries 100             # the DETR of its authors, for a dataset

This shows how to set up a detector; it has not been measured on a real dataset. On the drawn images, the loss falls
towards 0 if boxes, classes and gradients are right. A dataset has the columns `image` and `objects`:
{"bbox": [[left, top, width, height], ...] in pixels, "category": [class number, ...]}.

DETR reads only the backbone's last stage, so it takes any family; its loss needs scipy. Afterwards
`pipeline("object-detection", OUTPUT_DIR)` works; for a GroupNorm ResNet, `import poa_hf` first.
"""

import random
import sys
from dataclasses import dataclass

import torch
from datasets import Dataset, load_dataset
from PIL import Image, ImageDraw
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessorPil,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.hf_argparser import HfArg

import poa_hf  # noqa: F401  registers GroupNorm ResNets with transformers; other families do not need it


@dataclass
class Arguments:
    model: str = HfArg(help="Folder or Hub name of an extracted model.")
    dataset_name: str | None = HfArg(default=None, help="Folder or Hub name of a dataset; by default, drawn images.")
    train_split: str = "train"
    labels: list[str] = HfArg(default_factory=lambda: ["box", "ellipse"], help="Names of the classes 0, 1, ...")
    image_size: int | None = HfArg(default=None, help="Side in pixels; by default the checkpoint's.")
    head_size: int = HfArg(default=64, help="Channels of the DETR.")
    head_layers: int = HfArg(default=3, help="Layers of its encoder, and of its decoder.")
    num_queries: int = HfArg(default=10, help="Most objects that it finds in an image.")
    dropout: float = 0.0
    backbone_rate: float = HfArg(default=0.1, help="The backbone's learning rate over the head's.")


def drawn_images(count: int = 4, size: int = 96) -> Dataset:
    """Images with one to three boxes and ellipses each, in the layout of a detection dataset."""
    rows = []
    for _ in range(count):
        image, objects = Image.new("RGB", (size, size), "grey"), {"bbox": [], "category": []}
        for _ in range(random.randint(1, 3)):
            width, height = random.randint(size // 5, size // 2), random.randint(size // 5, size // 2)
            left, top = random.randint(0, size - width), random.randint(0, size - height)
            category = random.randint(0, 1)
            draw = ImageDraw.Draw(image)
            shape = (draw.rectangle, draw.ellipse)[category]
            shape((left, top, left + width - 1, top + height - 1), tuple(random.choices(range(256), k=3)))
            objects["bbox"].append([left, top, width, height])
            objects["category"].append(category)
        rows.append({"image": image, "objects": objects})
    return Dataset.from_list(rows)


def load_data(args):
    if args.dataset_name is None:
        return drawn_images()
    try:
        data = load_dataset(args.dataset_name, split=args.train_split)
    except (ValueError, OSError) as error:  # names the splits that exist
        sys.exit(f"{args.dataset_name} cannot be loaded: {error}")
    if {"image", "objects"} <= set(data.column_names):
        return data
    sys.exit(f"{args.dataset_name} needs the columns image and objects, and has {data.column_names}.")


def load_model(args):
    labels = dict(id2label=dict(enumerate(args.labels)), label2id={name: i for i, name in enumerate(args.labels)})
    sizes = dict(d_model=args.head_size, encoder_ffn_dim=4 * args.head_size, decoder_ffn_dim=4 * args.head_size)
    layers = dict(encoder_layers=args.head_layers, decoder_layers=args.head_layers, num_queries=args.num_queries)
    # init_std, and the queries below, as DETR's authors have them: with transformers' own 0.02, the loss on four drawn
    # images was still 8 after 300 steps, instead of 0.6.
    others = dict(init_std=args.head_size**-0.5, auxiliary_loss=True, dropout=args.dropout)
    try:
        config, stored = AutoConfig.from_pretrained(args.model), AutoImageProcessor.from_pretrained(args.model)
        config.out_indices = [len(config.stage_names) - 1]  # the last stage
        model = DetrForObjectDetection(DetrConfig(backbone_config=config, **sizes, **layers, **others, **labels))
        # not AutoBackbone.from_pretrained, which asks the Hub even for a local folder
        load = type(model.model.backbone.model).from_pretrained
        backbone, info = load(args.model, config=config, dtype=torch.float32, output_loading_info=True)
    except (ValueError, OSError, AttributeError) as error:
        sys.exit(f"{args.model} is no backbone (`poa extract` writes one): {str(error).splitlines()[0]}")
    # a Swin's backbone has norms that its base model lacks; anything else would silently stay random
    if lost := {name for name in info["missing_keys"] if not name.startswith("hidden_states_norms.")}:
        sys.exit(f"{args.model} lacks {len(lost)} weights of the backbone, {min(lost)} among them.")
    torch.nn.init.normal_(model.model.query_position_embeddings.weight)
    model.model.backbone.model = backbone  # also undoes that DETR freezes whatever has "resnet" in its name
    side = args.image_size or stored.crop_size["height"]
    size = {"height": side, "width": side}
    return model, DetrImageProcessorPil(
        size=size, do_pad=False, image_mean=stored.image_mean, image_std=stored.image_std
    )


def main(argv=None):
    parser = HfArgumentParser((Arguments, TrainingArguments))
    parser.set_defaults(max_steps=300, per_device_train_batch_size=4, learning_rate=5e-4, weight_decay=1e-4,
                        max_grad_norm=0.1, logging_steps=50, save_total_limit=1,
                        remove_unused_columns=False)  # fmt: skip
    args, training = parser.parse_args_into_dataclasses(argv)
    set_seed(training.seed)  # Trainer would seed after the random weights are made
    data = load_data(args)
    model, processor = load_model(args)

    def collate(rows):
        annotations = [{"image_id": i, "annotations": []} for i in range(len(rows))]
        for row, target in zip(rows, annotations, strict=True):
            for box, category in zip(row["objects"]["bbox"], row["objects"]["category"], strict=True):
                target["annotations"].append({"bbox": box, "category_id": category, "area": box[2] * box[3]})
        batch = processor([row["image"].convert("RGB") for row in rows], annotations=annotations, return_tensors="pt")
        return {"pixel_values": batch["pixel_values"], "labels": [dict(target) for target in batch["labels"]]}

    batch = collate([data[i] for i in range(2)])
    outputs, features = model(**batch), model.model.backbone.model(batch["pixel_values"]).feature_maps[-1]
    tensors = {"pixel_values": batch["pixel_values"], "features": features, "logits": outputs.logits}
    print({name: tuple(tensor.shape) for name, tensor in {**tensors, "boxes": outputs.pred_boxes}.items()})

    heads = [weight for name, weight in model.named_parameters() if not name.startswith("model.backbone.")]
    backbone = {"params": model.model.backbone.parameters(), "lr": training.learning_rate * args.backbone_rate}
    optimizer = torch.optim.AdamW(
        [{"params": heads}, backbone], lr=training.learning_rate, weight_decay=training.weight_decay
    )
    trainer = Trainer(
        model, training, train_dataset=data, data_collator=collate, processing_class=processor,
        optimizers=(optimizer, None),
    )  # fmt: skip
    result = trainer.train(resume_from_checkpoint=training.resume_from_checkpoint)
    trainer.save_model()  # with its image processor
    trainer.save_metrics("train", result.metrics)


if __name__ == "__main__":
    main()
