"""What torch.compile costs and gains for teacher, intact student and single sizes, for step_parts.py --compile.

Run as a program (`python -m parts.step_compile` in benchmarks/), it compiles and measures once, with the inductor cache
that TORCHINDUCTOR_CACHE_DIR names.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.func import functional_call

from poa_hf import SubNetwork

from .machine import find_device
from .step_setup import BF16_TOLERANCE, PRESETS, StepSetup
from .timing import check, timed

BENCHMARKS = Path(__file__).parents[1]
SIZES, STEPS = 143, 276_800  # sub-networks of the published ViT, and steps of its training


def compile_report(options: argparse.Namespace) -> dict:
    """Measure with an empty cache and again with the cache that this fills, each in a separate process.

    Prints a table and a verdict on the elastic pass.
    """
    names = [name for name in ("preset", "batch", "repeats", "threads") if getattr(options, name) is not None]
    arguments = [f"--{name}={getattr(options, name)}" for name in names] + ["--bf16"] * options.bf16
    command = [sys.executable, "-m", "parts.step_compile", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
        cold, warm = (
            json.loads(
                subprocess.run(
                    command, env=environment, cwd=BENCHMARKS, stdout=subprocess.PIPE, check=True
                ).stdout.splitlines()[-1]
            )
            for _ in range(2)
        )
    print(f"{'compiled':<28} {'cold (s)':>9} {'kept (s)':>9} {'plain (s)':>10} {'compiled (s)':>13} {'time':>6}")
    for part, row in cold.items():
        row["warm_compile_seconds"] = warm[part]["compile_seconds"]
        print(
            f"{part:<28} {row['compile_seconds']:>9.1f} {row['warm_compile_seconds']:>9.1f} "
            f"{row['without_seconds']:>10.4f} {row['with_seconds']:>13.4f} {row['ratio']:>6.3f}"
        )
    sizes = [row for part, row in cold.items() if part.startswith("elastic")]
    seconds = statistics.mean(row["compile_seconds"] for row in sizes)
    gain = statistics.mean(row["without_seconds"] - row["with_seconds"] for row in sizes)
    cost, saved = SIZES * seconds, STEPS * gain
    verdict = {"seconds_per_size": seconds, "gain_per_pass": gain, "cost": cost, "saved": saved, "pays": saved > cost}
    if gain > 0:
        verdict["break_even_steps"] = seconds / gain
        print(f"\nelastic pass: a size repays its {seconds:.0f} s after {seconds / gain:,.0f} steps that train it")
    print(
        f"{SIZES} sizes x {seconds:.0f} s = {cost / 3600:.2f} h; {STEPS:,} steps x {1000 * gain:.1f} ms = "
        f"{saved / 3600:.2f} h: compiling the elastic pass {'pays' if saved > cost else 'does not pay'}\n"
    )
    return {"parts": cold, "elastic": verdict}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = find_device()
    setup = StepSetup(options.preset, options.batch, options.bf16, device)
    student, teacher = setup.dropping.student, setup.dropping.teacher
    compiled_student, compiled_teacher = (torch.compile(module, dynamic=False) for module in (student, teacher))
    figures = {
        "teacher": compared(
            lambda: setup.teacher(backbone=teacher),
            lambda: setup.teacher(backbone=compiled_teacher), options.repeats, device,
        ),
        "intact student": compared(
            lambda: setup.trained(student),
            lambda: setup.trained(student, compiled_student), options.repeats, device,
        ),
    }  # fmt: skip
    space = student.config.space
    sizes = sorted({space.smallest, setup.size, list(space)[len(space) // 2]})
    for size in sizes:
        torch.compiler.reset()  # sizes share their code, of which few versions are kept
        figures[f"elastic student {size}"] = compared(*elastic_passes(setup, size), options.repeats, device)
    print(json.dumps(figures))


def elastic_passes(setup: StepSetup, size: SubNetwork) -> tuple[Callable, Callable]:
    """The elastic student's pass, plain and compiled; both take the slices anew, which is not compiled."""
    student = setup.dropping.student
    plain = student.sliced(size).plain

    @torch.compile(dynamic=False)
    def compiled(tensors, crops, masks):
        return functional_call(plain, tensors, (crops,), {"bool_masked_pos": masks}, tie_weights=False)

    def run_compiled():
        tensors = student.sliced(size).tensors
        return setup.trained(student, lambda crops, bool_masked_pos=None: compiled(tensors, crops, bool_masked_pos))

    return lambda: setup.trained(student, student.sliced(size)), run_compiled


def compared(plain: Callable, compiled: Callable, repeats: int, device: torch.device) -> dict:
    """Return the seconds of compilation (of the first call beyond a later one) and of both passes in turn."""
    expected = plain()
    first = timed(compiled, device)
    start = time.perf_counter()
    found = compiled()
    usual = time.perf_counter() - start
    check(expected, found, BF16_TOLERANCE, "plain and compiled results")
    del expected, found
    seconds = [(timed(plain, device), timed(compiled, device)) for _ in range(repeats)]
    without, with_ = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {
        "compile_seconds": first - usual,
        "without_seconds": without,
        "with_seconds": with_,
        "ratio": statistics.median(own / other for other, own in seconds),
    }


if __name__ == "__main__":
    main()
