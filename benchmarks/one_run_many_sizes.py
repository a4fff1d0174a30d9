"""One run for all sizes, compared with a separate run for each on as many images: quality and cost.

    python benchmarks/one_run_many_sizes.py --dataset_name path/to/cifar10                   # a CPU scale
    python benchmarks/one_run_many_sizes.py --dataset_name path/to/cifar10 --scale gpu --seeds 0 1 2

For each seed: one elastic run (POA), and each size pre-trained separately by the same code (a space of one, no
elastic student). Baselines: sizes cut from the separately trained full size (naive slicing), and untrained models.
All are measured by k-NN (k = 20) and a linear probe on the labelled test split; labels are used for nothing else.
Runs that are in --output_dir already are not repeated. The last line is one JSON object, whose `ratio` is the cost of
the one run over that of the separate runs.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from parts.machine import table_head, versions
from transformers.utils import logging as transformers_logging

from poa_hf import PoaForPreTraining, SubNetwork
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.splits import open_splits
from poa_hf.evaluation.subject import load_subject
from poa_hf.evaluation.tasks import TaskOptions
from poa_hf.selection.costs import costs

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart_photos.yaml"
# Differences from that configuration; the CPU scale takes about 12 minutes of one core per seed.
SCALES = {
    "cpu": dict(
        sizes="32x2 48x2 48x3 64x3 64x4",
        recipe=dict(max_steps=1500, teacher_momentum=0.97, final_teacher_momentum=0.998, grayscale_probability=0.1),
        images=(10_000, 5_000),
    ),
    "gpu": dict(
        sizes="128x4 192x4 192x8 256x8 384x12",
        recipe=dict(max_steps=20_000, per_device_train_batch_size=512, teacher_momentum=0.99, warmup_steps=1_000,
                    final_teacher_momentum=0.9995, grayscale_probability=0.2, color_jitter=[0.4, 0.4, 0.2, 0.1],
                    bf16=True, dataloader_num_workers=8, learning_rate=4e-3),
        images=(50_000, 10_000),
        backbone=dict(hidden_size=384, num_attention_heads=6, num_hidden_layers=12, patch_size=4, min_hidden_size=128,
                      min_num_hidden_layers=4),
        heads=dict(num_prototypes=[2048, 4096], head_hidden_size=1024, head_bottleneck_size=128),
    ),
}  # fmt: skip
METHODS = ("poa", "alone", "naive", "untrained")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", required=True, help="labelled photographs with a test split")
    parser.add_argument("--scale", choices=SCALES, default="gpu" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--max_steps", type=int, help="optimizer steps of each run; default: the scale's")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/one_run_many_sizes"))
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    scale = SCALES[options.scale]
    sizes = [SubNetwork.parse(size) for size in scale["sizes"].split()]
    results = {(method, str(size)): [] for method in METHODS for size in sizes}
    seconds = {name: [] for name in ("poa", *map(str, sizes))}
    for seed in options.seeds:
        runs = {"poa": None} | {str(size): size for size in sizes}
        for name, size in runs.items():
            folder = options.output_dir / f"seed-{seed}" / name
            seconds[name].append(pretrain(folder, size, seed, scale, options))
        for method, size, accuracies in measure(options.output_dir / f"seed-{seed}", sizes, seed, scale, options):
            results[method, size].append(accuracies)
    report(results, seconds, sizes, options)


def pretrain(folder: Path, size: SubNetwork | None, seed: int, scale: dict, options) -> dict:
    """Pre-train the whole space (None) or one size, in a separate process, and return what it cost."""
    cost = folder / "cost.json"
    if cost.exists():
        return json.loads(cost.read_text())
    recipe = yaml.safe_load(CONFIG.read_text())
    recipe |= scale["recipe"] | {"seed": seed, "output_dir": str(folder), "dataset_name": options.dataset_name}
    steps = options.max_steps or recipe["max_steps"]
    recipe |= {"max_steps": steps, "masked_prediction_start_step": steps, "save_steps": steps, "disable_tqdm": True}
    backbone = recipe["model"]["backbone_config"] | scale.get("backbone", {})
    recipe["model"] |= scale.get("heads", {})
    if size is not None:
        head_size = backbone["hidden_size"] // backbone["num_attention_heads"]
        backbone |= {"hidden_size": size.width, "min_hidden_size": size.width,
                     "num_attention_heads": size.width // head_size,
                     "num_hidden_layers": size.depths[0], "min_num_hidden_layers": size.depths[0]}  # fmt: skip
        recipe["model"]["intact_weight"] = 1.0  # no elastic student
    recipe["model"]["backbone_config"] = backbone
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "recipe.yaml"
    config.write_text(yaml.safe_dump(recipe, sort_keys=False))
    print(f"{folder}: {steps} steps", file=sys.stderr, flush=True)
    before, start = cpu_seconds(), time.perf_counter()
    command = [sys.executable, "-m", "poa_hf.cli", "pretrain", "--config", str(config), "--overwrite_output_dir"]
    subprocess.run(command, check=True)
    spent = {"wall_seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds() - before}
    cost.write_text(json.dumps(spent) + "\n")
    return spent


def cpu_seconds() -> float:
    """Return the CPU seconds of all ended child processes, workers included."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(folder: Path, sizes: list[SubNetwork], seed: int, scale: dict, options):
    """(method, size, accuracies) of all models of one seed."""
    train, test = scale["images"]
    data = open_splits(options.dataset_name, max_train_images=train, max_test_images=test)

    def evaluated(subject, names):
        records = evaluate_sizes(subject, data, names, ["knn", "linear"], TaskOptions(k=(20,)), batch_size=256)
        for name in names:
            yield name, {record.task: record.value for record in records if record.size == name}

    poa = load_subject(folder / "poa")
    names = [str(size) for size in sizes]
    yield from (("poa", *found) for found in evaluated(poa, names))
    for name in names:
        yield from (("alone", *found) for found in evaluated(load_subject(folder / name), [name]))
    # the elastic model with the weights of the full size that was trained alone
    full = load_subject(folder / names[-1]).model.state_dict()
    poa.model.load_state_dict(full)
    yield from (("naive", *found) for found in evaluated(poa, names))
    for name in names:
        subject = load_subject(folder / name)
        torch.manual_seed(seed)
        subject.model = PoaForPreTraining(PoaForPreTraining.config_class.from_pretrained(folder / name)).teacher
        yield from (("untrained", *found) for found in evaluated(subject, [name]))


def report(results: dict, seconds: dict, sizes: list[SubNetwork], options) -> None:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{table_head(device)}; seeds {options.seeds}\n")
    print("accuracy in %, k-NN / linear, mean over the seeds (± standard deviation over the seeds)\n")
    parameters = costs(load_subject(options.output_dir / f"seed-{options.seeds[0]}" / "poa").model.config)
    print(f"{'size':<8} {'parameters':>10}  " + "  ".join(f"{method:>27}" for method in METHODS))
    figures = []
    for size in sizes:
        row = {"size": str(size), "parameters": parameters[size].parameters}
        cells = []
        for method in METHODS:
            found = results[method, str(size)]
            for task in ("knn", "linear"):
                values = [100 * accuracies[task] for accuracies in found]
                row[f"{method}_{task}"] = values
                spread = f"±{statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):>7.1f}{spread:<6}")
        figures.append(row)
        pairs = ("/".join(cells[i : i + 2]) for i in range(0, len(cells), 2))
        print(f"{row['size']:<8} {row['parameters']:>10,}  " + "  ".join(f"{pair:>27}" for pair in pairs))
    clock = "wall_seconds" if torch.cuda.is_available() else "cpu_seconds"
    cost = {name: sum(run[clock] for run in runs) / len(runs) for name, runs in seconds.items()}
    alone = sum(cost.values()) - cost["poa"]
    ratio = cost["poa"] / alone
    print(f"\n{clock.replace('_', ' ')} of a run (mean over the seeds): poa {cost['poa']:.0f}", end="")
    print("".join(f", {name} {value:.0f}" for name, value in cost.items() if name != "poa"))
    print(f"one run over {len(sizes)} runs alone: {ratio:.2f}\n")
    print(json.dumps({"ratio": ratio, "scale": options.scale, "seeds": options.seeds, "device": device,
                      **versions(), "clock": clock, "cost": cost,
                      "sizes": figures}))  # fmt: skip


if __name__ == "__main__":
    main()
