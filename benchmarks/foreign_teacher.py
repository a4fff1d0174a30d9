"""How good a small family is that learns from a larger trained model, compared with one that learns from itself.

    python benchmarks/foreign_teacher.py --folder runs/distilled --seeds 0 1       # half an hour of one core

The teacher is the full size of the quickstart's family (64x4, 900 steps on the built-in textures), extracted as a stock
model into `--folder`, where it is found again; or `--teacher` is another. For each seed and way, a family of 9 sizes
from 16x1 to 48x3 is trained by the quickstart's recipe for as many steps:
  alone        without a foreign teacher,
  features     matching the teacher's image and patch features by cosine,
  smooth_l1    the same by smooth L1,
  images       matching image features only,
  prototypes   predicting the assignments of heads on the teacher's features.
All see the same images, crops and sizes at each step. The last line is one JSON object: k-NN accuracies (k = 20) and
CPU seconds by way, size and seed.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from parts.machine import device_name, table_head, versions

from poa_hf.cli.main import main as poa

WAYS = {
    "alone": [],
    "features": ["--foreign_teacher_loss", "features"],
    "smooth_l1": ["--foreign_teacher_loss", "features", "--foreign_teacher_metric", "smooth_l1"],
    "images": ["--foreign_teacher_loss", "features", "--foreign_teacher_patches", "false"],
    "prototypes": ["--foreign_teacher_loss", "prototypes"],
}
SIZES = ["32x2", "48x2", "48x3"]
FAMILY = {
    **{"hidden_size": "48", "num_attention_heads": "3", "num_hidden_layers": "3"},
    **{"min_hidden_size": "16", "min_num_hidden_layers": "1"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="a stock model; trained here if not given")
    parser.add_argument("--teacher_steps", type=int, default=900)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument(
        "--koleo_weight", type=float, help="of the families with a teacher, instead of the quickstart's"
    )
    parser.add_argument("--folder", type=Path, help="where runs and the teacher are kept; nowhere if not given")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        teacher = options.teacher or str(train_teacher(folder, options.teacher_steps))
        results = {"teacher": {"full": accuracies(teacher)}}
        print(json.dumps(results), flush=True)
        seconds: dict[str, list[float]] = {}
        for seed in options.seeds:
            for way in options.ways:
                run, start = folder / f"{way}-{options.steps}-{seed}", time.process_time()
                foreign = [] if way == "alone" else ["--foreign_teacher", teacher]
                if foreign and options.koleo_weight is not None:
                    foreign += ["--model.koleo_weight", str(options.koleo_weight)]
                fields = [word for name, value in FAMILY.items() for word in (f"--model.backbone_config.{name}", value)]
                pretrain(run, seed, options.steps, *fields, *foreign, *WAYS[way])
                seconds.setdefault(way, []).append(time.process_time() - start)
                for size, value in zip(SIZES, accuracies(run, *SIZES), strict=True):
                    results.setdefault(way, {}).setdefault(size, []).append(value)
                print(f"seed {seed}: {way} {json.dumps(results[way])}", flush=True)
    report(results, seconds, options)


def pretrain(run: Path, seed: int, steps: int, *options: str) -> None:
    command = ["pretrain", "--config", "quickstart", "--output_dir", str(run), "--seed", str(seed), "--disable_tqdm"]
    command += ["--max_steps", str(steps), "--save_steps", "1000000", "--dataloader_num_workers", "0"]
    check(poa([*command, *options]))


def train_teacher(folder: Path, steps: int) -> Path:
    """The full size of a run of the quickstart, as a stock model."""
    if not (folder / "teacher").is_dir():
        pretrain(folder / "quickstart", 1, steps)
        check(poa(["extract", str(folder / "quickstart"), "--size", "64x4", "--output", str(folder / "teacher")]))
    return folder / "teacher"


def accuracies(model: str | Path, *sizes: str) -> list[float]:
    """k-NN accuracies on textures that were not trained on, in per cent."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "evaluations.json"
        command = ["evaluate", str(model), "--tasks", "knn", "--k", "20", "--dataset_name", "textures"]
        command += ["--max_train_images", "2000", "--max_test_images", "1500", "--num_workers", "0"]
        check(poa([*command, "--output", str(output), *(["--sizes", ",".join(sizes)] if sizes else [])]))
        records = json.loads(output.read_text())
    records = records["evaluations"] if isinstance(records, dict) else records
    return [100 * record["value"] for record in records if "knn" in record["metric"]]


def check(status: int) -> None:
    if status:
        raise SystemExit(status)


def report(results: dict, seconds: dict[str, list[float]], options: argparse.Namespace) -> None:
    def cell(values: list[float]) -> str:
        return f"{sum(values) / len(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"

    print(table_head(device_name()))
    print(f"teacher: {results['teacher']['full'][0]:.1f} %")
    print(f"| way | {' | '.join(SIZES)} | CPU seconds of training |\n| --- | {'--- | ' * len(SIZES)}--- |")
    for way, used in seconds.items():
        print(f"| {way} | {' | '.join(cell(results[way][size]) for size in SIZES)} | {sum(used) / len(used):.0f} |")
    print(json.dumps({"knn": results, "cpu_seconds": seconds, "options": vars(options), **versions()}, default=str))


if __name__ == "__main__":
    main()
