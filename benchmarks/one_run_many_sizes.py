"""One run for all sizes against a run for each: quality on as many images, on as much compute, and over steps.

    python benchmarks/one_run_many_sizes.py --dataset_name path/to/cifar10                   # a CPU scale
    python benchmarks/one_run_many_sizes.py --dataset_name path/to/cifar10 --scale gpu --seconds 280
    python benchmarks/one_run_many_sizes.py --dataset_name path/to/cifar10 --steps 8000 --seeds 0 1 2

For each seed: one elastic run (POA), and each size pre-trained alone by the same code (a space of one, no elastic
student). Three readings:

- equal images: all runs make as many steps of as many images;
- equal compute: the runs alone make so many steps, each as many, that together they cost what the one run does;
- curves: k-NN over the steps of all runs, on fewer images.

Sizes cut from the full size that was trained alone (plain slices) and untrained models stand beside them. Measured are
k-NN (k = 20) and a linear probe on the labelled test split; labels are used for nothing else. Differences are paired:
the same test images, the same seed; intervals (95 %) are for other test images and, with several seeds, other seeds.

Runs in --output_dir are not repeated, and a run that was cut off is continued. --seconds cuts off after so long and
reports what there is: one run, the smallest and the full size come first, then equal compute, then other sizes and
seeds. The same command goes on; with --record, finished runs count on another machine too. The last line is one JSON
object, whose `ratio` is the cost of the one run over that of the separate runs.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from parts import photos
from parts.cached_runs import Unfinished, alone, assignments, finished_cost, pretrain, with_overrides
from parts.machine import device_name, table_head, versions
from parts.run_record import pack, unpack
from parts.size_comparison import TASKS, curve, described, differences, outcomes
from transformers.utils import logging as transformers_logging

from poa_hf import PoaForPreTraining, SubNetwork
from poa_hf.evaluation.splits import open_splits
from poa_hf.evaluation.subject import Subject, load_subject

# Differences from that configuration. 1,500 steps of the CPU scale take about 20 minutes of one core per seed.
SCALES: dict[str, dict[str, Any]] = {
    "cpu": dict(
        sizes=photos.SIZES,
        recipe=photos.RECIPE | {"max_steps": 1500},
    ),
    "gpu": dict(
        sizes=("64x4", "128x6", "192x8"),
        recipe={"max_steps": 1000, "per_device_train_batch_size": 512, "teacher_momentum": 0.99, "warmup_steps": 100,
                "final_teacher_momentum": 0.9995, "grayscale_probability": 0.2,
                "color_jitter": [0.4, 0.4, 0.2, 0.1], "bf16": True, "dataloader_num_workers": 12,
                "learning_rate": 4e-3, "model.num_prototypes": [2048, 4096], "model.head_hidden_size": 512,
                "model.head_bottleneck_size": 128, "model.backbone_config.hidden_size": 192,
                "model.backbone_config.num_attention_heads": 6, "model.backbone_config.num_hidden_layers": 8,
                "model.backbone_config.patch_size": 4, "model.backbone_config.min_hidden_size": 64,
                "model.backbone_config.min_num_hidden_layers": 4},
    ),
}  # fmt: skip
POINTS = 8  # of a curve
ON_CURVES = dict(max_train_images=10_000, max_test_images=2_000)


class Comparison:
    """The runs of one command, and what they are worth.

    Args:
        options: The options of the command.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        scale = SCALES[options.scale]
        self.options = options
        self.sizes = [SubNetwork.parse(size) for size in options.sizes or scale["sizes"]]
        recipe = with_overrides(
            yaml.safe_load(photos.CONFIG.read_text()), scale["recipe"] | assignments(options.every_run)
        )
        steps = options.steps or recipe["max_steps"]
        self.recipe = recipe | {"dataset_name": options.dataset_name, "masked_prediction_start_step": steps} | {
            "max_steps": steps, "save_steps": -(-steps // POINTS), "save_total_limit": None, "disable_tqdm": True,
            "quiet": True,
        }  # fmt: skip
        images = dict(max_train_images=options.max_train_images, max_test_images=options.max_test_images)
        self.data = open_splits(options.dataset_name, **images)
        smaller = {name: min(limit, images[name] or limit) for name, limit in ON_CURVES.items()}
        self.curve_data = open_splits(options.dataset_name, **smaller)
        self.until = None if options.seconds is None else time.monotonic() + options.seconds

    def folder(self, seed: int, name: str) -> Path:
        return self.options.output_dir / f"seed-{seed}" / name

    def run(self) -> None:
        """Make all runs, in the order in which they say most."""
        first = dict.fromkeys([self.sizes[0], self.sizes[-1]])
        for seed in self.options.seeds:
            if "one_run" in self.options.make:
                self.pretrain(seed, "poa")
            for size in dict.fromkeys([*first, *self.sizes]) if "alone" in self.options.make else ():
                self.pretrain(seed, f"alone-{size}", size)
            for size in self.sizes if "equal_compute" in self.options.make else ():
                self.pretrain(seed, f"short-{size}", size, self.steps_of_equal_compute())

    def pretrain(self, seed: int, name: str, size: SubNetwork | None = None, steps: int | None = None) -> None:
        recipe = self.recipe if size is None else alone(self.recipe, size.width, size.depths[0])
        changes = assignments(self.options.one_run if size is None else self.options.runs_alone)
        recipe = with_overrides(recipe, changes | {"seed": seed})
        if steps is not None:
            share = steps / recipe["max_steps"]
            recipe |= {"max_steps": steps, "save_steps": steps, "masked_prediction_start_step": steps,
                       "warmup_steps": max(1, round(share * recipe["warmup_steps"]))}  # fmt: skip
        pretrain(self.folder(seed, name), recipe, self.until)

    def steps_of_equal_compute(self) -> int:
        """Return the steps of runs alone that cost together what one run costs, as measured with the first seed."""
        path = self.options.output_dir / "equal_compute.json"
        if not path.exists():
            cost = self.costs(self.options.seeds[:1])
            separate = sum(cost[f"alone-{size}"] for size in self.sizes)
            path.write_text(json.dumps({"steps": round(self.recipe["max_steps"] * cost["poa"] / separate)}) + "\n")
        return json.loads(path.read_text())["steps"]

    def costs(self, seeds: list[int]) -> dict[str, float]:
        """Return the mean cost of the finished runs by name, in CPU seconds, or in seconds on a GPU."""
        clock = "wall_seconds" if torch.cuda.is_available() else "cpu_seconds"
        found: dict[str, list[float]] = {}
        for seed in seeds:
            for folder in (self.options.output_dir / f"seed-{seed}").glob("*/"):
                if (cost := finished_cost(folder)) is not None:
                    found.setdefault(folder.name, []).append(cost[clock])
        return {name: statistics.mean(values) for name, values in found.items()}

    def outcomes(self, seed: int, kind: str, size: SubNetwork) -> dict | None:
        """Return the outcomes of a size by one of the kinds of models; None if its run is not finished."""
        own = str(size)
        needed = {"poa": ["poa"], "slices": ["poa", f"alone-{self.sizes[-1]}"], "untrained": [f"alone-{size}"]}
        folders = [self.folder(seed, name) for name in needed.get(kind, [f"{kind}-{size}"])]
        folder, path = folders[0], folders[0] / f"outcomes-{kind}-{own}.npz"
        if any(finished_cost(each) is None for each in folders):
            return None
        if not path.exists() and not all((each / "config.json").exists() for each in folders):
            return None  # a record has no weights

        def untrained() -> Subject:
            subject = load_subject(folder)
            torch.manual_seed(seed)
            subject.model = PoaForPreTraining(PoaForPreTraining.config_class.from_pretrained(folder)).teacher
            return subject

        def slices() -> Subject:
            subject = load_subject(folder)
            full = load_subject(self.folder(seed, f"alone-{self.sizes[-1]}"))
            subject.model.load_state_dict(full.model.state_dict())
            return subject

        subject = {"untrained": untrained, "slices": slices}.get(kind, lambda: load_subject(folder))
        return outcomes(path, subject, self.data, [own])

    def compared(self, kind: str) -> dict[str, dict]:
        """Return the differences between the one run and models of a kind, by size, over the seeds that have both."""
        found = {}
        for size in self.sizes:
            pairs = [(self.outcomes(seed, "poa", size), self.outcomes(seed, kind, size)) for seed in self.options.seeds]
            pairs = [(poa, other) for poa, other in pairs if poa is not None and other is not None]
            if pairs:
                found[str(size)] = differences(*zip(*pairs, strict=True), str(size)) | {"seeds": len(pairs)}
        return found

    def curves(self) -> dict[str, dict[int, dict[str, list[float]]]]:
        """Return k-NN accuracies in per cent of all seeds by `one run` or `alone`, step and size."""
        found: dict[str, dict[int, dict[str, list[float]]]] = {"one run": {}, "alone": {}}
        for seed in self.options.seeds:
            runs = {"poa": self.sizes} | {f"alone-{size}": [size] for size in self.sizes}
            for name, sizes in runs.items():
                by_step = found["one run" if name == "poa" else "alone"]
                for step, values in curve(self.folder(seed, name), self.curve_data, [*map(str, sizes)]).items():
                    if step % self.recipe["save_steps"] and step != self.recipe["max_steps"]:
                        continue  # saved where the run was cut off
                    for size, value in values.items():
                        by_step.setdefault(step, {}).setdefault(size, []).append(100 * value)
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="labelled photographs with a test split")
    parser.add_argument("--scale", choices=SCALES, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", nargs="+", help="sizes to compare, from the smallest to the full one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, help="optimizer steps of each run; default: the scale's")
    parser.add_argument("--max_train_images", type=int, help="images that vote; default: all")
    parser.add_argument("--max_test_images", type=int, help="images that are classified; default: all")
    for name, what in (("every_run", "all runs"), ("one_run", "the one run"), ("runs_alone", "the runs alone")):
        parser.add_argument(f"--{name}", nargs="+", default=[], metavar="KEY=VALUE", help=f"changes of {what}'s recipe")
    kinds = ("one_run", "alone", "equal_compute")
    parser.add_argument(
        "--make",
        nargs="*",
        choices=kinds,
        default=kinds,
        help="which runs, others are made elsewhere; none: report only",
    )
    parser.add_argument("--seconds", type=float, help="cut off after so long, and report what there is")
    parser.add_argument("--plot", type=Path, help="folder for a picture of the curves, one_run.svg")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/one_run_many_sizes"))
    parser.add_argument("--record", type=Path, help="a .zip of what finished runs gave: read first, then written anew")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    comparison = Comparison(options)
    if options.record is not None:
        unpack(options.record, options.output_dir)
    try:
        comparison.run()
    except Unfinished as cut_off:
        if options.seconds is None:
            raise
        print(cut_off, file=sys.stderr)
    report(comparison)
    if options.record is not None:
        pack(options.record, options.output_dir)


def report(comparison: Comparison) -> None:
    options, steps = comparison.options, comparison.recipe["max_steps"]
    print(f"{table_head(device_name())}; seeds {options.seeds}, {steps} steps\n")
    readings = {"alone": "alone, equal images", "short": "alone, equal compute", "slices": "plain slices",
                "untrained": "untrained"}  # fmt: skip
    found = {kind: comparison.compared(kind) for kind in readings}
    print("accuracy in %, k-NN / linear: one run, the others, and the difference with its 95 % interval\n")
    print(f"{'':<22} {'size':<8} seeds")
    for kind, title in readings.items():
        for size, values in found[kind].items():
            cells = [f"{title:<22} {size:<8} {values['seeds']:>5}"]
            for task in TASKS:
                of_task = values[task]
                means = [statistics.mean(of_task[side]) for side in ("first", "second")]
                cells.append("{:>5.1f} {:>5.1f}  {:<20}".format(*means, described(of_task)))
            print("  ".join(cells))
    curves = comparison.curves()
    print("\nk-NN in % over steps, on fewer images: one run / alone")
    for step in sorted({*curves["one run"], *curves["alone"]}):
        pairs = [[curves[way].get(step, {}).get(str(size)) for way in curves] for size in comparison.sizes]
        cells = (" / ".join("-" if v is None else f"{statistics.mean(v):.1f}" for v in pair) for pair in pairs)
        sizes = map(str, comparison.sizes)
        print(f"{step:>7}  " + "  ".join(f"{size} {cell:>13}" for size, cell in zip(sizes, cells, strict=True)))
    if options.plot is not None and curves["one run"]:
        plot(curves, options.plot / "one_run.svg")
    cost = comparison.costs(options.seeds)
    separate = [cost[name] for name in (f"alone-{size}" for size in comparison.sizes) if name in cost]
    ratio = cost["poa"] / sum(separate) if separate and "poa" in cost else 1.0
    print("\nmean seconds of a run: " + ", ".join(f"{name} {value:.0f}" for name, value in sorted(cost.items())))
    print(f"one run over {len(separate)} runs alone: {ratio:.2f}\n")
    changes = {name: getattr(options, name) for name in ("every_run", "one_run", "runs_alone")}
    print(json.dumps({"ratio": ratio, "scale": options.scale, "seeds": options.seeds, "steps": steps, **changes,
                      "device": device_name(), **versions(), "cost": cost, "compared": found,
                      "curves": curves}))  # fmt: skip


def plot(curves: dict, path: Path) -> None:
    """Draw k-NN over steps, of each size in one run and alone."""
    from poa_hf.figures.charts import LIGHT, line_chart

    lines = {}
    for size in next(iter(curves["one run"].values())):
        for way, by_step in curves.items():
            if steps := [step for step in sorted(by_step) if size in by_step[step]]:
                lines[f"{size}, {way}"] = (steps, [statistics.mean(by_step[step][size]) for step in steps])
    path.parent.mkdir(parents=True, exist_ok=True)
    alone = [name for name in lines if name.endswith("alone")]
    line_chart(LIGHT, lines, y_name="k-NN accuracy in %", dashed=alone).savefig(path, facecolor="white")


if __name__ == "__main__":
    main()
