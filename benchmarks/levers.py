"""Screening of what may close the gap between the sizes of one run and sizes trained alone.

    python benchmarks/levers.py --data cifar10 --dataset_name path/to/cifar10 --steps 1500 --seeds 0 1
    python benchmarks/levers.py --data textures --levers base candidates-4           # or textures-swin, textures-resnet

Each lever is a change of the recipe. All runs see as many images. k-NN (k = 20) and a linear probe are measured on
images that no run sees: of CIFAR-10, the last of eight parts of the train split, never the test split. Levers of one
run are compared with `base`, and sizes alone, at several learning rates, stand beside them: both sides are tuned.
Runs in --output_dir are not repeated, and those that were cut off are continued: a screening may take several sessions.
--report only prints what there is. The last line is one JSON object; `ratio` is the CPU time of `base` over
that of the sizes alone.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from parts import photos
from parts.cached_runs import alone, finished_cost, pretrain, with_overrides
from parts.machine import device_name, table_head, versions
from transformers.utils import logging as transformers_logging

from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.splits import open_splits
from poa_hf.evaluation.subject import load_subject
from poa_hf.evaluation.tasks import TaskOptions

CONFIGS = Path(__file__).parents[1] / "configs"
HELD_OUT = ["train-0000[0-6]*", "test=train-00007*"]  # of the eight files of CIFAR-10's train split
DATA: dict[str, dict[str, Any]] = {
    "cifar10": dict(
        config=photos.CONFIG.name,
        recipe=photos.RECIPE | dict(data_files=HELD_OUT[:1]),
        splits=dict(data_files=HELD_OUT, max_train_images=20_000),
    ),
    "textures": dict(config="quickstart.yaml", recipe={}, splits=dict(max_test_images=2_000)),
    "textures-swin": dict(config="quickstart_swin.yaml", recipe={}, splits=dict(max_test_images=2_000),
                          sizes=("16x2-1", "24x2-2", "32x2-3")),
    "textures-resnet": dict(config="quickstart_resnet.yaml", recipe={}, splits=dict(max_test_images=2_000),
                            sizes=("16x1-1", "32x2-1", "48x2-2")),
}  # fmt: skip
# by name, the keys of the recipe that a lever changes; numbers behind a factor of the learning rate are of both sides
LEVERS: dict[str, dict[str, Any]] = {
    "base": {},
    **{f"lambda-{value}": {"model.intact_weight": value} for value in (0.5, 0.6, 0.65, 0.7, 0.8)},
    **{f"candidates-{count}": {"model.backbone_config.num_candidates": count} for count in (3, 4, 5)},
    "bias-1": {"model.backbone_config.sampling_bias": 1},
    **{f"students-{count}": {"num_elastic_students": count} for count in (2, 3)},
    **{f"same-view-{weight}": {"model.same_view_weight": weight} for weight in (0.25, 0.5, 2.0)},
    "elastic-teacher": {"model.elastic_teacher": True},
    **{f"elastic-from-{share}": {"elastic_start_step": share} for share in (0.1, 0.3)},
    # the units are put in order when sizes begin to learn
    **{f"ordered-from-{share}": {"elastic_start_step": share, "order_units": True} for share in (0.1, 0.3)},
}
# likewise, of those that are no options of the package (parts/trial_levers.py)
TRIAL_LEVERS = {
    **{f"head-scale-{power}": {"head_scale": power} for power in (0.0, 0.5)},
    **{f"shared-rate-{part}": {"shared_rate": part} for part in (0.5, 0.7)},
    "shared-decay-0": {"shared_decay": 0.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=DATA, default="textures")
    parser.add_argument("--dataset_name", help="the folder of CIFAR-10")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--levers", nargs="+", default=["base"], help="names of levers; +NAME adds to the one before")
    parser.add_argument("--rates", type=float, nargs="*", default=[], help="factors of the learning rate, for base")
    parser.add_argument("--alone", nargs="*", default=[], metavar="SIZE", help="sizes of a ViT to train alone")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/levers"))
    parser.add_argument("--report", action="store_true", help="only print what has been measured")
    options = parser.parse_args()
    for part in {part for name in options.levers for part in name.split("+")} - LEVERS.keys() - TRIAL_LEVERS.keys():
        parser.error(f"--levers: there is no {part}; there are {', '.join([*LEVERS, *TRIAL_LEVERS])}")
    transformers_logging.disable_progress_bar()
    root = options.output_dir / f"{options.data}-{options.steps}"
    if not options.report:
        for seed in options.seeds:  # all levers of a seed first: what is cut off is a later seed
            for name, recipe in runs(options).items():
                folder = root / name / f"seed-{seed}"
                pretrain(folder, recipe | {"seed": seed}, trial_levers=_parts(name, TRIAL_LEVERS))
                measure(folder, options)
    report(root, options)


def runs(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the recipes of all runs by name."""
    data = DATA[options.data]
    base = yaml.safe_load((CONFIGS / data["config"]).read_text()) | data["recipe"]
    if options.dataset_name:
        base["dataset_name"] = options.dataset_name
    steps = options.steps
    base |= {"max_steps": steps, "save_steps": 300, "save_total_limit": None, "disable_tqdm": True, "quiet": True}
    if base["masked_prediction_start_step"]:
        base["masked_prediction_start_step"] = steps  # never, as in the recipe
    found = {}
    for name in options.levers:
        changes = _parts(name, LEVERS)
        if "elastic_start_step" in changes:
            changes["elastic_start_step"] = round(changes["elastic_start_step"] * steps)
        found[name] = with_overrides(base, changes)
    rates = {rate: {"learning_rate": base["learning_rate"] * rate} for rate in options.rates or [1.0]}
    for rate, change in rates.items():
        if rate != 1:
            found[f"base rate-{rate:g}"] = base | change
        for size in options.alone:
            width, depth = map(int, size.split("x"))
            found[f"alone-{size}" + (f" rate-{rate:g}" if rate != 1 else "")] = alone(base, width, depth) | change
    return found


def _parts(name: str, levers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the levers of a run change, its name being theirs with a plus between them."""
    return {key: value for part in name.split("+") for key, value in levers.get(part, {}).items()}


def measure(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return accuracies by size and task of images that the run has not seen."""
    path = folder / "screening.json"
    if not path.exists():
        name = options.dataset_name or "textures"
        data = open_splits(name, **DATA[options.data]["splits"])
        subject = load_subject(folder)
        space = subject.model.config.space
        sizes = [str(space.full)] if len(space) == 1 else sizes_of(options)
        records = evaluate_sizes(
            subject, data, sizes, ["knn", "linear"], TaskOptions(k=(20,)), batch_size=256, quiet=True
        )
        found: dict[str, dict[str, float]] = {}
        for record in records:
            found.setdefault(record.size, {})[record.task] = record.value
        path.write_text(json.dumps(found) + "\n")
    return json.loads(path.read_text())


def sizes_of(options: argparse.Namespace) -> tuple[str, str, str]:
    """Return the smallest, a middle and the full size."""
    return DATA[options.data].get("sizes", photos.SIZES)


def report(root: Path, options: argparse.Namespace) -> None:
    """Print accuracies of all runs that are measured, and their differences from `base` with the same seed."""
    names = sorted({path.parent.parent.name for path in root.glob("*/seed-*/screening.json")})
    names = ["base"] * ("base" in names) + [name for name in names if name != "base"]
    found = {
        name: {int(path.parent.name[5:]): json.loads(path.read_text()) for path in root.glob(f"{name}/seed-*/screen*")}
        for name in names
    }
    costs = {name: _mean_cost(root, name, list(found[name])) for name in names}
    print(f"{table_head(device_name())}; {options.data}, {options.steps} steps\n")
    print("k-NN / linear accuracy in %, mean over the seeds (difference from base, over the same seeds)\n")
    print(f"{'run':<24} {'seeds':<8} {'CPU s':>6}  " + "  ".join(f"{size:>28}" for size in sizes_of(options)))
    for name in names:
        cells = "  ".join(f"{_cell(found, name, size):>28}" for size in sizes_of(options))
        print(f"{name:<24} {','.join(map(str, sorted(found[name]))):<8} {costs[name]:>6.0f}  {cells}")
    sizes_alone = [costs[name] for name in (f"alone-{size}" for size in sizes_of(options)) if name in costs]
    ratio = costs["base"] / sum(sizes_alone) if sizes_alone and costs.get("base") else 1.0
    print(f"\none run over {len(sizes_alone)} runs alone: {ratio:.2f}\n")
    print(json.dumps({"ratio": ratio, "data": options.data, "steps": options.steps, "device": device_name(),
                      **versions(), "cpu_seconds": costs, "runs": found}))  # fmt: skip


def _mean_cost(root: Path, name: str, seeds: list[int]) -> float:
    costs = [finished_cost(root / name / f"seed-{seed}") for seed in seeds]
    known = [cost["cpu_seconds"] for cost in costs if cost and cost["cpu_seconds"]]
    return statistics.mean(known) if known else 0.0


def _cell(found: dict, name: str, size: str) -> str:
    cells = []
    for task in ("knn", "linear"):
        values = {seed: 100 * sizes[size][task] for seed, sizes in found[name].items() if size in sizes}
        if not values:
            return ""
        text = f"{statistics.mean(values.values()):.1f}"
        pairs = [
            value - 100 * found["base"][seed][size][task]
            for seed, value in values.items()
            if seed in found.get("base", {})
        ]
        cells.append(text + (f" ({statistics.mean(pairs):+.1f})" if pairs and name != "base" else ""))
    return " / ".join(cells)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
