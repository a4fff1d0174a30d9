"""Pre-train a small elastic model, measure and extract its named sizes, and compare them with cheap baselines.

    python examples/quickstart.py                                          # an elastic ViT, built-in images
    python examples/quickstart.py --family swin                            # or resnet
    python examples/quickstart.py --dataset_name path/to/cifar10           # any labelled photographs
    python examples/quickstart.py --dataset_name photos --holdout 0.2      # photographs without a test split
    python examples/quickstart.py --max_steps 100 --output_dir runs/short  # any option of `poa pretrain`

Labels are read for the k-NN table only, never in training. The k-NN accuracies go to the run's `evaluations.json`, from
where the cards of the extracted models and `poa report` take them; the table with the baselines goes to
`quickstart.json`, and a picture to `quickstart.png`, both in the run's folder.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib
import torch
from transformers import AutoModel

from poa_hf import evaluate_sizes, load_subject, open_splits
from poa_hf.cli import main
from poa_hf.cli.recipe import parse_recipe
from poa_hf.evaluation.splits import EvaluationData
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import TaskOptions
from poa_hf.runs.evaluations import Evaluation, save_evaluations

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

CONFIGS = Path(__file__).parents[1] / "configs"
MEMORY, QUERIES = 5000, 2000  # images that vote, and images that are classified


class RawPixels(torch.nn.Module):
    """What costs nothing at all: the pixels themselves as features."""

    def forward(self, pixel_values):
        return Features(pixel_values.flatten(1))  # (B, 3 * H * W)


class Features:
    """Features (B, D) in the place where models of transformers give them."""

    def __init__(self, pooler_output: torch.Tensor):
        self.pooler_output = pooler_output


def knn(subject: Subject, data: EvaluationData, sizes: list[str] | None = None) -> list[Evaluation]:
    """k-NN accuracies, k = 20, of the sizes of an elastic model or of a model with one size."""
    return evaluate_sizes(subject, data, sizes, ["knn"], TaskOptions(k=(20,)), batch_size=250)


def run(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--family", choices=["vit", "swin", "resnet"], default="vit")
    parser.add_argument("--label_column")
    parser.add_argument("--holdout", type=float, help="share of the images to classify, for data with one split only")
    options, argv = parser.parse_known_args(argv)
    if "--config" not in argv:
        # photographs want other crops and colours than textures
        photos = parse_recipe(argv).data.dataset_name != "textures"
        name = "quickstart" + f"_{options.family}" * (options.family != "vit") + "_photos" * photos
        argv = ["--config", str(CONFIGS / f"{name}.yaml"), *argv]
    recipe = parse_recipe(argv)
    data = open_splits(  # first, so that what is missing is said before the training
        recipe.data.dataset_name, recipe.data.dataset_config_name, recipe.data.dataset_split,
        label_column=options.label_column, max_train_images=MEMORY, max_test_images=QUERIES, holdout=options.holdout,
    )  # fmt: skip
    folder = Path(recipe.training.output_dir)
    space = recipe.model.backbone_config.space
    sizes = list(dict.fromkeys(map(str, [*space.named.values(), space.full])))
    _poa("pretrain", *argv)
    trained = load_subject(folder)
    records = knn(trained, data, sizes)
    save_evaluations(folder / "evaluations.json", records)  # before the extraction, as cards show them
    _poa("extract", str(folder), "--size", ",".join(sizes), "--output", f"{folder}/extracted", "--overwrite")
    [pixels] = knn(Subject("raw pixels", RawPixels(), trained.processor), data)
    table = []
    print(f"\n{'size':>10} {'parameters':>11} {'k-NN %':>8} {'untrained':>10} {'raw pixels':>11}")
    for record in records:
        model = AutoModel.from_pretrained(folder / "extracted" / record.size)
        torch.manual_seed(0)
        [untrained] = knn(Subject("untrained", AutoModel.from_config(model.config), trained.processor), data)
        row = {"size": record.size, "parameters": model.num_parameters(), "knn": 100 * record.value,
               "knn_untrained": 100 * untrained.value, "knn_pixels": 100 * pixels.value}  # fmt: skip
        table.append(row)
        print("{size:>10} {parameters:>11,} {knn:>8.1f} {knn_untrained:>10.1f} {knn_pixels:>11.1f}".format(**row))
    (folder / "quickstart.json").write_text(json.dumps(table, indent=2) + "\n")
    plot(folder, table)
    print(f"\nPicture: {folder / 'quickstart.png'}   Models: {folder / 'extracted'}\nnext: poa report {folder}")


def _poa(*command: str) -> None:
    """Run a command of poa, and end with its exit status if it fails."""
    print(f"$ poa {' '.join(command)}", flush=True)
    if status := main([*command]):
        sys.exit(status)


def plot(folder: Path, table: list[dict]) -> None:
    """Draw the loss over the steps, and the accuracy of each size with its baselines."""
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
