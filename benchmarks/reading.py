"""Images per second, CPU time and memory of the data loader, for streams and folders and by the number of workers.

    python benchmarks/reading.py path/to/tables path/to/shards --workers 0 1 2 --images 1920

To compare two versions, run each with its own PYTHONPATH by turns: wall-clock times on a busy machine mean little, CPU
time and memory more. The last line is one JSON object.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import torch
from parts.machine import table_head, versions

from poa_hf.data import CropArguments, PretrainingLoader, open_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", help="folders or names, as `poa pretrain --dataset_name` takes them")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=1920)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(table_head("data loader"))
    print(f"{options.images} images after the first batch, medians of {options.repeats} turns\n")
    print(f"{'dataset':<24}{'workers':>8}{'images/s':>10}{'CPU ms per image':>18}{'MB in all processes':>21}")
    figures = []
    for name in options.datasets:
        turns = [[measure(name, workers, options) for workers in options.workers] for _ in range(options.repeats)]
        for workers, measured in zip(options.workers, zip(*turns, strict=True), strict=True):
            rate, cpu, memory = (statistics.median(values) for values in zip(*measured, strict=True))
            print(f"{Path(name).name:<24}{workers:>8}{rate:>10.0f}{cpu:>18.2f}{memory:>21.0f}")
            row = {"dataset": Path(name).name, "workers": workers, "rate": rate, "cpu_ms": cpu, "megabytes": memory}
            figures.append(row)
    print(json.dumps({"ratio": figures[-1]["rate"] / figures[0]["rate"], **versions(), "figures": figures}))


def measure(name: str, workers: int, options: argparse.Namespace) -> tuple[float, float, float]:
    """Return images per second, CPU milliseconds per image, and megabytes of all processes together."""
    began_cpu = cpu_seconds()
    loader = PretrainingLoader(
        open_dataset(name), CropArguments(), options.batch_size, mask_grid=(14, 14), num_workers=workers
    )
    batches = iter(loader)
    next(batches)
    began = time.perf_counter()
    count = options.images // options.batch_size
    for _ in range(count):
        next(batches)
    seconds = time.perf_counter() - began
    memory = megabytes()
    batches.close()  # the time of children counts once they have ended
    cpu = cpu_seconds() - began_cpu
    return count * options.batch_size / seconds, 1000 * cpu / ((count + 1) * options.batch_size), memory


def cpu_seconds() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def megabytes() -> float:
    """Memory of this process and its workers; what several share is divided among them (Linux)."""
    own = Path("/proc/self")
    children = (own / f"task/{own.resolve().name}/children").read_text().split()
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in ("self", *children)]
    return sum(int(text.partition("Pss:")[2].split()[0]) for text in rollups) / 1024


if __name__ == "__main__":
    main()
