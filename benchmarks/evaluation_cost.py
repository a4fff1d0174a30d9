"""What evaluating many sizes costs: operations on a GPU, what sharing blocks spares, the time beside another version.

    python benchmarks/evaluation_cost.py                          # a ViT-L family, counted; shared blocks, timed
    python benchmarks/evaluation_cost.py --against OLD/src        # also 9 sizes x 5 tasks, in turn with other sources
    python benchmarks/evaluation_cost.py --scale tiny --against src

1. Operations of k-NN for all sizes of a space on `--images` images, a multiplication and its addition counted as two:
   features of every image by every size, with and without the blocks that sizes of one width share, and the search.
   Seconds follow from rates that were measured on a GPU (`RATES`).
2. CPU time of the features of the sizes of one width together and one by one.
3. CPU time of `poa evaluate` of 9 sizes and five tasks, of a model of random weights on images of CIFAR-10's size, with
   these sources and with others, in turn, each in a process of its own. `ratio` is the median of the pairs' ratios.

The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from parts.machine import device_name, table_head, versions
from transformers import AutoModel
from transformers.utils import logging as transformers_logging

from poa_hf import PoaConfig, PoaForPreTraining, PoaViTConfig
from poa_hf.data.processor import evaluation_processor
from poa_hf.elastic import block_indices
from poa_hf.models.flops import count_forward_flops

# What one H100 did in bfloat16, in operations per second: a training step of ViT-L (81e12 operations) as it is and with
# compiled blocks, in 0.581 and 0.392 s, and a product of two matrices of 8192 x 8192.
RATES = {"as a training step": 139e12, "as a step of compiled blocks": 207e12, "as a matrix product": 777e12}
TASKS = "knn,linear,lowshot,clustering,retrieval"
# the space of configs/quickstart_photos.yaml: 9 sizes
QUICKSTART = dict(
    hidden_size=64, num_hidden_layers=4, num_attention_heads=4, min_hidden_size=32, min_num_hidden_layers=2,
    image_size=32, patch_size=8, layerscale_value=1.0, initializer_range=0.05,
)  # fmt: skip
VIT_S_WIDE = dict(hidden_size=384, num_hidden_layers=24, num_attention_heads=6, min_hidden_size=384)
EVALUATE = """
import sys, time
import torch, transformers, datasets
import poa_hf.evaluation.evaluator
from poa_hf.cli.main import main
torch.set_num_threads(1)
began = time.process_time()
status = main(sys.argv[1:])
print("cpu seconds", time.process_time() - began)
sys.exit(status)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=("published", "tiny"), default="published")
    parser.add_argument("--images", type=int, default=100_000, help="images of both splits together")
    parser.add_argument("--test_share", type=float, default=0.2, help="share of the images that are classified")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of measurements")
    parser.add_argument("--against", type=Path, help="sources of another version, to compare the time with")
    parser.add_argument("--dataset_name", help="of the evaluation that is timed; default: textures of 32 x 32")
    parser.add_argument("--train_images", type=int, default=4000, help="of the evaluation that is timed")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tiny = options.scale == "tiny"
    print(table_head(device_name()))
    found = counted(PoaViTConfig(**(QUICKSTART if tiny else {})), options.images, options.test_share)
    found |= timed_together(tiny, options.repeats)
    found["ratio"] = found["time_together"]
    if options.against is not None:
        found |= beside(options.against, options.dataset_name, options.train_images, options.repeats)
    print(json.dumps({**found, "device": device_name(), **versions()}))


def counted(config: PoaViTConfig, images: int, test_share: float) -> dict[str, object]:
    """Count the operations of k-NN for every size."""
    space, full = config.space, config.num_hidden_layers
    alone = shared = search = 0
    tests = round(images * test_share)
    for width in dict.fromkeys(size.width for size in space):
        sizes = [size for size in space if size.width == width]
        flops = {size.depths[0]: count_forward_flops(config, size, config.image_size) for size in sizes}
        depths = sorted(flops)
        # sizes of one width differ by whole blocks, which cost the same
        block = (flops[depths[-1]] - flops[depths[0]]) / (depths[-1] - depths[0])
        paths = [tuple(block_indices(full, depth)) for depth in depths]
        begun = {path[:count] for path in paths for count in range(1, len(path) + 1)}
        alone += sum(flops.values())
        shared += sum(flops.values()) - block * (sum(map(len, paths)) - len(begun))
        search += len(sizes) * 2 * width * tests * (images - tests)
    print(f"\nk-NN of {len(space)} sizes, {space.smallest} to {space.full}, on {images:,} images, {tests:,} for tests")
    print(f"  features, each size by itself   {alone * images / 1e15:10.2f} PFLOP")
    print(f"  features, blocks shared         {shared * images / 1e15:10.2f} PFLOP, {shared / alone:.3f} of them")
    print(f"  search for neighbours           {search / 1e15:10.4f} PFLOP")
    seconds = {}
    for name, rate in RATES.items():
        seconds[name] = [(total * images + search) / rate for total in (alone, shared)]
        hours = " -> ".join(f"{value / 3600:.2f}" for value in seconds[name])
        print(f"  GPU hours {name:<30} {hours:>14}  ({rate / 1e12:.0f} TFLOP/s)")
    return {
        "sizes": len(space), "images": images, "feature_flops": alone * images, "shared_flops": shared * images,
        "search_flops": search, "flops_ratio": shared / alone, "gpu_seconds": seconds,
    }  # fmt: skip


def timed_together(tiny: bool, repeats: int) -> dict[str, float]:
    """Time the features of the sizes of one width, together and one by one, in turn."""
    config = PoaViTConfig(**(QUICKSTART if tiny else VIT_S_WIDE))
    model = AutoModel.from_config(config).eval()
    width = config.space.full.width
    sizes = [size for size in config.space if size.width == width]
    pixels = torch.randn(64 if tiny else 2, 3, config.image_size, config.image_size)
    ratios = []
    with torch.no_grad():
        list(model.outputs_of(sizes, pixels))  # plain models are made at their first use
        for _ in range(repeats):
            together = cpu_seconds(lambda: list(model.outputs_of(sizes, pixels)))
            alone = cpu_seconds(lambda: [model.sliced(size)(pixels) for size in sizes])
            ratios.append(together / alone)
    ratio = statistics.median(ratios)
    print(f"\nfeatures of {len(sizes)} depths of width {width}: CPU time together over one by one {ratio:.2f}")
    return {"time_together": ratio}


def cpu_seconds(run) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def beside(sources: Path, dataset: str | None, train_images: int, repeats: int) -> dict[str, object]:
    """Time an evaluation of 9 sizes and five tasks with these sources and with others."""
    own = Path(__file__).resolve().parents[1] / "src"
    with tempfile.TemporaryDirectory() as folder:
        run, data = write_run(Path(folder) / "run"), dataset or write_images(Path(folder) / "images", train_images)
        command = ["evaluate", str(run), "--dataset_name", str(data), "--sizes", "all", "--tasks", TASKS]
        command += ["--max_train_images", str(train_images), "--max_test_images", str(train_images // 4)]
        times: dict[str, list[float]] = {"these": [], "those": []}
        for turn in range(repeats):
            pair = [("those", sources.resolve()), ("these", own)]
            for name, path in pair if turn % 2 == 0 else reversed(pair):
                times[name].append(evaluation_seconds(path, [*command, "--output", f"{folder}/{name}.json"]))
    ratios = [these / those for these, those in zip(times["these"], times["those"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"\n9 sizes x 5 tasks, {train_images:,} + {train_images // 4:,} images of 32 x 32: CPU seconds, medians")
    these, those = (statistics.median(times[name]) for name in ("these", "those"))
    print(f"  these sources {these:.1f}, the others {those:.1f}")
    print(f"  ratio {ratio:.2f} (pairs: {', '.join(f'{value:.2f}' for value in ratios)})")
    return {"ratio": ratio, "pairs": ratios, "seconds": times, "train_images": train_images}


def evaluation_seconds(sources: Path, command: list[str]) -> float:
    """Return the CPU seconds of a command of other sources, without those of its imports."""
    environment = {**os.environ, "PYTHONPATH": str(sources), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", EVALUATE, *command, "--num_workers", "0"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True)
    if printed.returncode:
        raise SystemExit(printed.stderr)
    return float(printed.stdout.splitlines()[-1].removeprefix("cpu seconds"))


def write_run(folder: Path) -> Path:
    """Save a model of random weights in the quickstart's space."""
    config = PoaConfig(backbone_config=PoaViTConfig(**QUICKSTART), num_prototypes=[8], head_hidden_size=8)
    PoaForPreTraining(config).save_pretrained(folder)
    evaluation_processor(32).save_pretrained(folder)
    return folder


def write_images(folder: Path, count: int) -> str:
    """Write textures of ten kinds as tables of PNGs of CIFAR-10's size, a fifth of them a test split."""
    import datasets
    from PIL import Image

    from poa_hf.data.textures import TextureDataset

    textures = TextureDataset()
    for split, first, last in (("train", 0, count), ("test", count, count + count // 4)):
        rows = [textures[index] for index in range(first, last)]
        table = {
            "image": [row["image"].resize((32, 32), Image.Resampling.BILINEAR) for row in rows],
            "label": [row["label"] for row in rows],
        }
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(num_classes=10))
        folder.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(table, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


if __name__ == "__main__":
    main()
