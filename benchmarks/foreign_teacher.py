"""How good a small family is that learns from a larger trained model, compared with one that learns from itself.

    python benchmarks/foreign_teacher.py --steps 300 --seeds 0 1       # an hour of one core

A larger ViT (`--teacher_size`) is trained alone on the built-in textures, and extracted as a stock model into
`--folder`, where it is found again; or `--teacher` is one. For each seed and way, the family of the quickstart (32x2 to
64x4) is then trained for as many steps:
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
SIZES = ["32x2", "48x3", "64x4"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="a stock model; trained here if not given")
    parser.add_argument("--teacher_size", default="96x6", help="width and depth of the teacher that is trained here")
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
        teacher = options.teacher or str(train_teacher(folder, options.teacher_size, options.teacher_steps))
        results = {"teacher": {"full": [accuracy(teacher)]}}
        print(json.dumps(results), flush=True)
        seconds: dict[str, list[float]] = {}
        for seed in options.seeds:
            for way in options.ways:
                run, start = folder / f"{way}-{options.steps}-{seed}", time.process_time()
                foreign = [] if way == "alone" else ["--foreign_teacher", teacher]
                if foreign and options.koleo_weight is not None:
                    foreign += ["--model.koleo_weight", str(options.koleo_weight)]
                pretrain(run, seed, options.steps, *foreign, *WAYS[way])
                seconds.setdefault(way, []).append(time.process_time() - start)
                for size in SIZES:
                    results.setdefault(way, {}).setdefault(size, []).append(accuracy(run, size))
                print(f"seed {seed}: {way} {json.dumps(results[way])}", flush=True)
    report(results, seconds, options)


def pretrain(run: Path, seed: int, steps: int, *options: str) -> None:
    command = ["pretrain", "--config", "quickstart", "--output_dir", str(run), "--seed", str(seed), "--disable_tqdm"]
    command += ["--max_steps", str(steps), "--save_steps", "1000000", "--dataloader_num_workers", "0"]
    check(poa([*command, *options]))


def train_teacher(folder: Path, size: str, steps: int) -> Path:
    """A single size by the method, as in DINOv2, extracted as a stock model."""
    if (folder / "teacher").is_dir():
        return folder / "teacher"
    width, depth = size.split("x")
    fields = {"hidden_size": width, "min_hidden_size": width, "num_attention_heads": str(int(width) // 16)}
    fields |= {"num_hidden_layers": depth, "min_num_hidden_layers": depth}
    options = [word for name, value in fields.items() for word in (f"--model.backbone_config.{name}", value)]
    pretrain(folder / "large", 7, steps, "--model.intact_weight", "1", *options)
    check(poa(["extract", str(folder / "large"), "--size", size, "--output", str(folder / "teacher")]))
    return folder / "teacher"


def accuracy(model: str | Path, size: str | None = None) -> float:
    """k-NN accuracy on textures that were not trained on, in per cent."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "evaluations.json"
        command = ["evaluate", str(model), "--tasks", "knn", "--k", "20", "--dataset_name", "textures"]
        command += ["--max_train_images", "5000", "--max_test_images", "2000", "--num_workers", "0"]
        check(poa([*command, "--output", str(output), *(["--sizes", size] if size else [])]))
        records = json.loads(output.read_text())
    records = records["evaluations"] if isinstance(records, dict) else records
    return 100 * next(record["value"] for record in records if "knn" in record["metric"])


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
