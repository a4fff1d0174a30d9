"""How good sizes made by a warm start from a trained model are, compared with two ways without it.

    python benchmarks/warm_start.py --dataset_name path/to/cifar10                # a CPU scale: minutes of one core
    python benchmarks/warm_start.py --dataset_name path/to/cifar10 --source MODEL --steps 900 --seeds 0 1 2

A small stock `vit` is trained on the labelled images (or `--source` is a checkpoint of that size). Then, for each seed,
k-NN accuracy on the test split of
  sliced     each size as slices of the trained model, without any conversion,
  converted  the same sizes after pre-training that started from the model (`init_from`), without labels,
  alone      each size trained from scratch by the same code and for as many steps, as a space of one.
Labels train the source and vote in k-NN; nothing else sees them. The last line is one JSON object, in which `ratio` is
the mean k-NN error of the smaller sizes, `converted` over `alone`.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from parts.machine import table_head, versions
from PIL import Image
from torch.nn.functional import cross_entropy, pad
from transformers import ViTConfig, ViTForImageClassification

from poa_hf import (
    PoaConfig,
    PoaForPreTraining,
    PoaTrainer,
    PoaTrainingArguments,
    PoaViTConfig,
    SubNetwork,
    init_from,
    warm_start_config,
)
from poa_hf.data.processor import evaluation_processor
from poa_hf.data.sources import open_dataset
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.splits import open_splits
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import TaskOptions

SIZES = ["32x2", "32x4", "48x3", "64x2", "64x4"]  # the last is the full one
PIXELS = dict(image_size=32, patch_size=8)
HEADS = dict(
    num_prototypes=[256, 512], head_hidden_size=128, head_bottleneck_size=32, initializer_range=0.1, koleo_weight=0.3,
    intact_weight=0.7,
)  # fmt: skip
# Of configs/quickstart_photos.yaml; what a warm start changes follows below.
RECIPE = dict(
    per_device_train_batch_size=128, learning_rate=8e-3, min_learning_rate=1e-5, warmup_steps=50, weight_decay=0.04,
    final_weight_decay=0.1, layerwise_decay=1.0, patch_embed_lr_mult=1.0, teacher_momentum=0.95,
    final_teacher_momentum=0.995, teacher_temperature=0.01, final_teacher_temperature=0.01,
    freeze_last_layer_steps=20, schedule_stretch=1.0, global_crop_size=32, num_local_crops=0,
    global_crop_scale=[0.3, 1.0], color_jitter=[0.4, 0.4, 0.4, 0.05], grayscale_probability=0.0,
    blur_probability=[0.0, 0.0, 0.0], solarize_probability=0.0, dataloader_num_workers=0, disable_tqdm=True,
    logging_steps=100, save_steps=1_000_000, image_mean=[0.5, 0.5, 0.5], image_std=[0.25, 0.25, 0.25],
)  # fmt: skip


class Images:
    """Decoded images as the trainer reads them."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return {"image": Image.fromarray(self.pixels[index])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="labelled photographs with a train and a test split")
    parser.add_argument("--source", help="a stock vit of 64x4, 32 pixels, patches of 8; trained here if not given")
    parser.add_argument("--source_steps", type=int, default=1500, help="supervised steps of 128 images")
    parser.add_argument("--steps", type=int, default=200, help="steps of the conversion and of each size trained alone")
    parser.add_argument("--learning_rate", type=float, default=6e-3, help="of the conversion, for 1024 images")
    parser.add_argument("--freeze", type=int, default=30, help="first steps, which train only the heads")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--test_images", type=int, default=5000)
    parser.add_argument("--train_images", type=int, default=50_000, help="that are trained on")
    parser.add_argument("--memory_images", type=int, default=10_000, help="whose labels vote")
    parser.add_argument("--ways", nargs="+", choices=["converted", "alone"], default=["converted", "alone"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("poa_hf").setLevel(logging.ERROR)
    pixels, labels = read(options.dataset_name, options.train_images)
    data = open_splits(
        options.dataset_name, max_train_images=options.memory_images, max_test_images=options.test_images
    )
    with tempfile.TemporaryDirectory() as folder:
        seconds: dict[str, list[float]] = {"source": [], "converted": [], "alone": []}
        source = options.source
        if source is None and "converted" in options.ways:
            source = Path(folder) / "source"
            start = time.process_time()
            train_source(pixels, labels, options.source_steps, source)
            seconds["source"].append(time.process_time() - start)
        results: dict[str, dict[str, list[float]]] = {}
        for seed in options.seeds:
            one = measure(source, Images(pixels), data, options, seed, Path(folder) / str(seed), seconds)
            for name, values in one.items():
                for size, value in values.items():
                    results.setdefault(name, {}).setdefault(size, []).append(value)
            print(f"seed {seed}: {json.dumps(one)}", flush=True)
    report(results, seconds, options)


def read(name: str, limit: int) -> tuple[np.ndarray, torch.Tensor]:
    """The training split: uint8 (N, 32, 32, 3), and its labels."""
    dataset = open_dataset(name, None, "train").take(limit)
    columns = dataset.column_names or list(next(iter(dataset)))
    image, label = (next(c for c in columns if word in c) for word in ("im", "label"))
    rows = [(np.asarray(row[image].convert("RGB").resize((32, 32))), row[label]) for row in dataset.decode(True)]
    order = np.random.default_rng(0).permutation(len(rows))
    return np.stack([rows[i][0] for i in order]), torch.tensor([rows[i][1] for i in order])


def train_source(pixels: np.ndarray, labels: torch.Tensor, steps: int, folder: Path) -> None:
    """A stock ViT classifier: AdamW, one cosine, shifts of 4 pixels and flips."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=256,
        num_labels=int(labels.max()) + 1, **PIXELS,
    )  # fmt: skip
    model = ViTForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        at = torch.randint(len(pixels), (128,), generator=generator)
        batch = pad(torch.from_numpy(pixels[at.numpy()]).permute(0, 3, 1, 2).float() / 255, (4,) * 4, mode="reflect")
        y, x, flip = (int(torch.randint(n, (1,), generator=generator)) for n in (9, 9, 2))
        batch = batch[:, :, y : y + 32, x : x + 32]
        batch = (batch.flip(-1) if flip else batch).sub(0.5).div(0.25)
        loss = cross_entropy(model(batch).logits, labels[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 300 == 299:
            print(f"source: step {step + 1}, loss {loss.item():.2f}", flush=True)
    model.save_pretrained(folder)
    evaluation_processor(32, RECIPE["image_mean"], RECIPE["image_std"]).save_pretrained(folder)


def measure(source, images: Images, data, options, seed: int, folder: Path, seconds) -> dict[str, dict[str, float]]:
    """k-NN accuracies of one seed, by way and size."""

    def knn(backbone, sizes) -> dict[str, float]:
        processor = evaluation_processor(32, RECIPE["image_mean"], RECIPE["image_std"])
        records = evaluate_sizes(Subject("model", backbone, processor), data, sizes, ["knn"], TaskOptions(k=(20,)))
        return {record.size: record.value for record in records}

    def train(model, name: str, **changes) -> None:
        arguments = {**RECIPE, "max_steps": options.steps, "masked_prediction_start_step": options.steps, **changes}
        start = time.process_time()
        PoaTrainer(model, PoaTrainingArguments(output_dir=str(folder / name), seed=seed, **arguments), images).train()
        seconds["converted" if name == "converted" else "alone"].append(time.process_time() - start)

    results = {}
    if "converted" in options.ways:
        torch.manual_seed(seed)
        backbone = warm_start_config(source, min_hidden_size=32, min_num_hidden_layers=2, drop_path_rate=0.0)
        model = PoaForPreTraining(PoaConfig(backbone_config=backbone, **HEADS))
        init_from(model, source)
        results["sliced"] = knn(model.teacher, SIZES)
        # the features are there: the heads follow first, then all at a lower rate, and a teacher that moves little
        train(
            model, "converted", learning_rate=options.learning_rate, freeze_backbone_steps=options.freeze,
            warmup_steps=options.steps // 10, teacher_momentum=0.99,
        )  # fmt: skip
        results["converted"] = knn(model.teacher, SIZES)
    for size in SIZES if "alone" in options.ways else []:
        sub_network = SubNetwork.parse(size)
        torch.manual_seed(seed)
        plain = PoaViTConfig(
            hidden_size=sub_network.width, num_hidden_layers=sub_network.depths[0],
            num_attention_heads=sub_network.width // 16, min_hidden_size=sub_network.width,
            min_num_hidden_layers=sub_network.depths[0], layerscale_value=1.0, initializer_range=0.05,
            drop_path_rate=0.0, **PIXELS,
        )  # fmt: skip
        model = PoaForPreTraining(PoaConfig(backbone_config=plain, **HEADS))
        train(model, size)
        results.setdefault("alone", {}).update(knn(model.teacher, [size]))
    return results


def report(results, seconds, options) -> None:
    print(
        f"\n{table_head('CPU, 1 thread')}; {options.steps} steps of 128 "
        f"images, seeds {options.seeds}, {options.test_images} test images\nk-NN accuracy in % (k = 20), mean of the "
        "seeds\n"
    )
    print("  ".join([f"{'size':<8}", *(f"{name:>9}" for name in results)]))
    for size in SIZES:
        means = [100 * statistics.mean(values[size]) for values in results.values()]
        print("  ".join([f"{size:<8}", *(f"{mean:>9.1f}" for mean in means)]))
    print()
    for name, values in seconds.items():
        if values:
            print(f"{name}: {sum(values):.0f} s of CPU in all")

    def error(name: str) -> float:
        return statistics.mean(1 - value for size in SIZES[:-1] for value in results[name][size])

    figures = {}
    if {"converted", "alone"} <= results.keys():
        figures["ratio"] = error("converted") / error("alone")
    if "converted" in results:
        figures["ratio_to_sliced"] = error("converted") / error("sliced")
        full, start = (statistics.mean(results[name][SIZES[-1]]) for name in ("converted", "sliced"))
        figures["full_size_change"] = full - start
    shown = vars(options) | {"source": bool(options.source), "dataset_name": Path(options.dataset_name).name}
    figures |= {"knn": results, "cpu_seconds": seconds, "options": shown}
    print(json.dumps(figures | versions()))


if __name__ == "__main__":
    main()
