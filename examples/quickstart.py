"""Pre-train a small elastic model, extract its named sizes, and compare them with what costs nothing.

    python examples/quickstart.py                                          # an elastic ViT, built-in images
    python examples/quickstart.py --family swin                            # or resnet
    python examples/quickstart.py --dataset_name path/to/cifar10           # any labelled photographs
    python examples/quickstart.py --max_steps 100 --output_dir runs/short  # any option of `poa pretrain`

Labels are read for the k-NN table alone, never in training. The table goes to `quickstart.json`, a picture to
`quickstart.png`, both in the run's folder.
"""

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

import matplotlib
import torch
from transformers import AutoImageProcessor, AutoModel

from poa_hf.cli.main import main
from poa_hf.cli.recipe import parse_recipe
from poa_hf.data import find_image_column, open_dataset, open_image
from poa_hf.data.textures import TextureDataset
from poa_hf.evaluation.features import class_features
from poa_hf.evaluation.tasks.knn import KnnAccuracy

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

CONFIGS = Path(__file__).parents[1] / "configs"
MEMORY, QUERIES = 5000, 2000  # images that vote, and images that are classified


def labelled_images(data) -> tuple[list, list]:
    """Memory and query images with labels: [(image, label), ...] twice."""
    if data.dataset_name == "textures":
        # other seeds than the one trained on
        memory, queries = TextureDataset(seed=1_000_001), TextureDataset(seed=1_000_002)
        columns = ("image", "label")
    else:
        memory = open_dataset(data.dataset_name, data.dataset_config_name, data.dataset_split, data.streaming)
        for split in ("test", "validation"):
            try:
                queries = open_dataset(data.dataset_name, data.dataset_config_name, split, data.streaming)
                break
            except ValueError:
                continue
        else:
            raise ValueError(f"{data.dataset_name} has neither a test nor a validation split to measure k-NN on.")
        labels = [name for name in ("label", "labels", "fine_label") if name in memory.column_names]
        if not labels:
            raise ValueError(f"{data.dataset_name} has no label column to measure k-NN on: {memory.column_names}.")
        columns = (find_image_column(memory), labels[0])
    return tuple(
        [(open_image(row[columns[0]]), row[columns[1]]) for row in islice(dataset, count)]
        for dataset, count in ((memory, MEMORY), (queries, QUERIES))
    )


def knn(memory_features, memory, query_features, queries) -> float:
    """k-NN accuracy in percent, k = 20."""
    metric = KnnAccuracy(memory_features, torch.tensor([label for _, label in memory]))
    references = torch.tensor([label for _, label in queries])
    return 100 * metric.compute(predictions=query_features, references=references)["knn_accuracy"]


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--family", choices=["vit", "swin", "resnet"], default="vit")
    options, argv = parser.parse_known_args(argv)
    if "--config" not in argv:
        # photographs want other crops and colours than textures
        photos = parse_recipe(argv).data.dataset_name != "textures"
        name = "quickstart" + f"_{options.family}" * (options.family != "vit") + "_photos" * photos
        argv = ["--config", str(CONFIGS / f"{name}.yaml"), *argv]
    recipe = parse_recipe(argv)
    memory, queries = labelled_images(recipe.data)  # first, so that what is missing is said before the training
    folder = Path(recipe.training.output_dir)
    space = recipe.model.backbone_config.space
    sizes = list(dict.fromkeys([*space.named.values(), space.full]))
    for command in (
        ["pretrain", *argv],
        ["extract", str(folder), "--size", ",".join(map(str, sizes)), "--output", f"{folder}/extracted", "--overwrite"],
    ):
        print(f"$ poa {' '.join(command)}", flush=True)
        if status := main(command):
            sys.exit(status)

    processor = AutoImageProcessor.from_pretrained(folder / "extracted" / str(sizes[0]))

    def pixels(images, batch=250):
        for start in range(0, len(images), batch):
            chunk = [image for image, _ in images[start : start + batch]]
            yield processor(chunk, return_tensors="pt").pixel_values

    def features_accuracy(model) -> float:
        features = [class_features(model, pixels(images)) for images in (memory, queries)]
        return knn(features[0], memory, features[1], queries)

    raw = [torch.cat(list(pixels(images))).flatten(1) for images in (memory, queries)]
    raw_accuracy = knn(raw[0], memory, raw[1], queries)
    table = []
    print(f"\n{'size':>10} {'parameters':>11} {'k-NN %':>8} {'untrained':>10} {'raw pixels':>11}")
    for size in sizes:
        model = AutoModel.from_pretrained(folder / "extracted" / str(size))
        torch.manual_seed(0)
        untrained = features_accuracy(AutoModel.from_config(model.config))
        row = {"size": str(size), "parameters": model.num_parameters(), "knn": features_accuracy(model),
               "knn_untrained": untrained, "knn_pixels": raw_accuracy}  # fmt: skip
        table.append(row)
        print(f"{row['size']:>10} {row['parameters']:>11,} {row['knn']:>8.1f} {untrained:>10.1f} {raw_accuracy:>11.1f}")
    (folder / "quickstart.json").write_text(json.dumps(table, indent=2) + "\n")
    plot(folder, table)
    print(f"\nPicture: {folder / 'quickstart.png'}   Models: {folder / 'extracted'}")


def plot(folder: Path, table: list[dict]) -> None:
    """Loss over steps, and accuracy of each size with its baselines."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    shown = [line for line in lines if "loss" in line]
    left.plot([line["step"] for line in shown], [line["loss"] for line in shown], color="#1f5fa8")
    left.set(xlabel="step", ylabel="loss", title="Pre-training loss")
    names = {"knn": "extracted", "knn_untrained": "untrained", "knn_pixels": "raw pixels"}
    for offset, ((key, name), color) in enumerate(zip(names.items(), ("#1f5fa8", "#9db7d5", "#c9c9c9"), strict=True)):
        bars = right.bar([i + 0.28 * (offset - 1) for i in range(len(table))], [row[key] for row in table], 0.26,
                         color=color, label=name)  # fmt: skip
        right.bar_label(bars, fmt="%.0f", fontsize=8)
    right.set_xticks(range(len(table)), [f"{row['size']}\n{row['parameters'] / 1e3:.0f} k" for row in table])
    right.set(ylabel="k-NN accuracy (%)", title="Each size, one run")
    right.set_ylim(top=1.25 * max(row[key] for row in table for key in names))  # room for the legend
    right.legend(frameon=False, ncols=3, loc="upper center")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "quickstart.png", dpi=120)


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"quickstart: {error}")
