"""A family of sizes from one trained model, made in several ways that cost the same compute.

    python benchmarks/trained_start.py --source MODEL --dataset_name path/to/cifar10 --steps 2000 --seeds 0 1 2

The source is a trained `dinov2` of the full size, such as an extracted one. For each seed:

- family: one elastic run that starts from the source, its units put in order of importance before;
- unordered: the same without the order;
- taught: one elastic run from random weights whose frozen teacher is the source;
- distilled: a run for each size, from random weights, whose frozen teacher is the source;
- sliced: likewise, from the source's slices, its units in order;
- alone: a run for each size, from random weights, without the source.

The elastic runs make --steps steps. Runs of single sizes make so many, each as many, that all sizes together cost the
CPU time of `family`, by pilot runs of a few steps. Beside them stand slices of the source, without any training.
Measured are k-NN (k = 20) and a linear probe on the labelled test split. Differences are those of `family` and the
others, paired: the same test images, the same seed; with their 95 % intervals.

Runs in --output_dir are not repeated, and a run that was cut off is continued. --rate WAY=FACTOR multiplies a way's
learning rate. The last line is one JSON object, whose `ratio` is the mean k-NN error of `family` over `distilled`.
"""

import argparse
import json
import statistics
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
import yaml
from parts import photos
from parts.cached_runs import alone, assignments, finished_cost, pretrain, with_overrides
from parts.machine import device_name, table_head, versions
from parts.size_comparison import TASKS, described, differences, outcomes
from transformers.utils import logging as transformers_logging

from poa_hf import SubNetwork
from poa_hf.cli.main import main as poa
from poa_hf.evaluation.splits import open_splits
from poa_hf.evaluation.subject import load_subject

ONE_RUN = ("family", "unordered", "taught")
RUN_FOR_EACH = ("distilled", "sliced", "alone")


class Comparison:
    """The runs of one command, and what they are worth.

    Args:
        options: The options of the command.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.sizes = [SubNetwork.parse(size) for size in photos.SIZES]
        recipe = with_overrides(
            yaml.safe_load(photos.CONFIG.read_text()), photos.RECIPE | {"model.intact_weight": 0.65}
        )
        common = {"dataset_name": options.dataset_name, "disable_tqdm": True, "quiet": True, "save_total_limit": 1}
        self.recipe = recipe | common | assignments(options.every_run)
        self.rates = {way: float(factor) for way, _, factor in (text.partition("=") for text in options.rate)}
        images = dict(max_train_images=options.max_train_images, max_test_images=options.max_test_images)
        self.data = open_splits(options.dataset_name, **images)
        self.root: Path = options.output_dir

    def run(self) -> None:
        """Make all runs, the first seed of all ways first."""
        self.cut_source()
        for seed in self.options.seeds:
            for way in self.options.ways:
                for folder, recipe in self.runs(way, seed):
                    pretrain(folder, recipe)

    def cut_source(self) -> None:
        """Put the source's units in order, and write its slices."""
        ordered, slices = self.root / "ordered", self.root / "slices"
        if not (slices / str(self.sizes[-1])).exists():
            space = ["--model.backbone_config.min_hidden_size", str(self.sizes[0].width)]
            space += ["--model.backbone_config.min_num_hidden_layers", str(self.sizes[0].depths[0])]
            images = ["--dataset_name", self.options.dataset_name]
            order = ["order", self.options.source, "--output", str(ordered), "--overwrite", *images, *space]
            extract = [
                "extract",
                str(ordered),
                "--size",
                ",".join(photos.SIZES),
                "--output",
                str(slices),
                "--overwrite",
            ]
            with redirect_stdout(sys.stderr):  # the figures alone are this program's output
                ended = poa(order) or poa(extract)
            if ended:
                sys.exit(ended)

    def runs(self, way: str, seed: int, steps: int | None = None) -> list[tuple[Path, dict[str, Any]]]:
        """Return the folders and recipes of a way's runs, of so many steps if that is given."""
        parent = self.root / f"seed-{seed}" if steps is None else self.root / f"pilot-{steps}"
        if way in ONE_RUN:
            names = [(way, self.changed(way, None))]
        else:
            names = [(f"{way}-{size}", self.changed(way, size)) for size in self.sizes]
        if steps is None:
            steps = self.options.steps if way in ONE_RUN else self.steps_of_equal_compute(way)
        schedule = {"max_steps": steps, "save_steps": max(steps, 1), "masked_prediction_start_step": steps,
                    "warmup_steps": min(50, max(1, steps // 10)), "freeze_backbone_steps": 0, "seed": seed}  # fmt: skip
        return [(parent / name, recipe | schedule) for name, recipe in names]

    def changed(self, way: str, size: SubNetwork | None) -> dict[str, Any]:
        """Return the recipe of a way, for one size if it is given."""
        recipe = self.recipe if size is None else alone(self.recipe, size.width, size.depths[0])
        recipe = recipe | {"learning_rate": recipe["learning_rate"] * self.rates.get(way, 1.0)}
        teacher = {"foreign_teacher": self.options.source}
        changes = {
            "family": {"init_from": str(self.root / "ordered"), "order_units": False},
            "unordered": {"init_from": self.options.source, "order_units": False},
            "taught": teacher,
            "distilled": teacher,
            "sliced": teacher | {"init_from": str(self.root / "slices" / str(size)), "order_units": False},
            "alone": {},
        }
        return recipe | changes[way]

    def steps_of_equal_compute(self, way: str) -> int:
        """Return the steps of a way's runs that cost together what `family` costs."""
        path = self.root / "equal_compute.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        for each in ("family", way):
            if each not in kept:
                costs = [
                    sum(pretrain(folder, recipe)["cpu_seconds"] for folder, recipe in self.runs(each, 0, steps))
                    for steps in self.options.pilot_steps
                ]
                few, more = self.options.pilot_steps
                kept[each] = (costs[1] - costs[0]) / (more - few)  # of a step; what starting costs is left out
                path.write_text(json.dumps(kept) + "\n")
        if kept[way] <= 0 or kept["family"] <= 0:
            raise SystemExit(
                f"The pilot runs of {way} are too short to say what a step costs: give more --pilot_steps."
            )
        return max(1, round(self.options.steps * kept["family"] / kept[way]))

    def outcomes(self, way: str, seed: int, size: SubNetwork) -> dict | None:
        """Return the outcomes of a size; None if its run is not finished."""
        own = str(size)
        if way == "slices":
            folder, path = self.root / "ordered", self.root / f"outcomes-slices-{own}.npz"
        else:
            folder = self.root / f"seed-{seed}" / (way if way in ONE_RUN else f"{way}-{own}")
            path = folder / f"outcomes-{own}.npz"
            if finished_cost(folder) is None:
                return None
        return outcomes(path, lambda: load_subject(folder), self.data, [own])

    def compared(self, way: str) -> dict[str, dict]:
        """Return the differences between `family` and another way, by size, over the seeds that have both."""
        found = {}
        for size in self.sizes:
            pairs = [
                (self.outcomes("family", seed, size), self.outcomes(way, seed, size)) for seed in self.options.seeds
            ]
            pairs = [(first, second) for first, second in pairs if first is not None and second is not None]
            if pairs:
                found[str(size)] = differences(*zip(*pairs, strict=True), str(size)) | {"seeds": len(pairs)}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="the trained model")
    parser.add_argument("--dataset_name", required=True, help="labelled photographs with a test split")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of an elastic run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    ways = [*ONE_RUN, *RUN_FOR_EACH]
    parser.add_argument("--ways", nargs="+", choices=ways, default=ways)
    parser.add_argument("--rate", nargs="+", default=[], metavar="WAY=FACTOR", help="factors of the learning rate")
    parser.add_argument("--pilot_steps", type=int, nargs=2, default=[20, 170], help="of two runs: how much is a step?")
    parser.add_argument("--every_run", nargs="+", default=[], metavar="KEY=VALUE", help="changes of all recipes")
    parser.add_argument("--max_train_images", type=int, help="images that vote; default: all")
    parser.add_argument("--max_test_images", type=int, help="images that are classified; default: all")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/trained_start"))
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    comparison = Comparison(options)
    comparison.run()
    report(comparison)


def report(comparison: Comparison) -> None:
    options = comparison.options
    print(f"{table_head(device_name())}; seeds {options.seeds}, {options.steps} steps of an elastic run\n")
    found = {way: comparison.compared(way) for way in ("slices", *options.ways) if way != "family"}
    print("accuracy in %, k-NN / linear: family, the other, and the difference with its 95 % interval\n")
    for way, sizes in found.items():
        for size, values in sizes.items():
            cells = [f"{way:<10} {size:<8} {values['seeds']:>5}"]
            for task in TASKS:
                means = [statistics.mean(values[task][side]) for side in ("first", "second")]
                cells.append("{:>5.1f} {:>5.1f}  {:<20}".format(*means, described(values[task])))
            print("  ".join(cells))
    costs = {
        way: statistics.mean(
            sum(cost["cpu_seconds"] for folder, _ in comparison.runs(way, seed) if (cost := finished_cost(folder)))
            for seed in options.seeds
        )
        for way in options.ways
    }
    print("\nmean CPU seconds: " + ", ".join(f"{way} {seconds:.0f}" for way, seconds in costs.items()))
    errors = [[100 - v for v in values["knn"][side]] for values in found.get("distilled", {}).values()
              for side in ("first", "second")]  # fmt: skip
    ratio = statistics.mean(sum(errors[::2], [])) / statistics.mean(sum(errors[1::2], [])) if errors else 1.0
    print(f"k-NN error of family over distilled: {ratio:.3f}\n")
    steps = json.loads((comparison.root / "equal_compute.json").read_text()) if set(options.ways) - set(ONE_RUN) else {}
    print(json.dumps({"ratio": ratio, "seeds": options.seeds, "steps": options.steps, "rates": comparison.rates,
                      "cpu_seconds_of_a_step": steps, "device": device_name(), **versions(), "cpu_seconds": costs,
                      "compared": found}))  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
