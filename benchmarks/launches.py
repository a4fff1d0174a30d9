"""How many kernels a training step launches and how many bytes they move, by part of the step and by operation.

    python benchmarks/launches.py                       # ViT-L, published recipe, 50 images, bfloat16
    python benchmarks/launches.py --size 768x12 --float32
    python benchmarks/launches.py --compile             # and with compiled blocks and losses, in minutes

The step runs on tensors without memory, so it is counted in seconds, on any machine. What is counted are PyTorch's
operations that compute something (not views): on a GPU each is at least one kernel, whose launch costs the host several
microseconds. Bytes are what these operations read and write, each by itself. With --compile, each kind of block and of
loss is compiled for the CPU, and what the generated code calls is counted, by functions and by the loops in them (see
parts/compiled_work.py); a GPU's compiler fuses otherwise, so that both are estimates. The last line is one JSON object.
"""

import argparse
import json

from parts.compiled_work import Recorder, compiled_work, plain_work
from parts.launches import Work, count_step
from parts.machine import device_name, table_head, versions
from parts.presets import PRESETS

from poa_hf import PoaConfig, PoaTrainingArguments, PoaViTConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="vit_large")
    parser.add_argument("--size", help="sub-network of the elastic pass")
    parser.add_argument("--batch", type=int, help="images")
    parser.add_argument("--operations", type=int, default=12, help="rows of the table of operations")
    parser.add_argument("--float32", action="store_true", help="without autocast to bfloat16")
    parser.add_argument("--pack_crops", action="store_true", help="global and local crops in one pass")
    parser.add_argument("--compile", action="store_true", help="count compiled blocks and losses too")
    options = parser.parse_args()
    if options.compile and options.pack_crops:
        parser.error("--compile counts blocks that take crops of one resolution: leave out --pack_crops")
    preset, bf16 = PRESETS[options.preset], not options.float32
    config = PoaConfig(backbone_config=PoaViTConfig(drop_path_rate=0.2, **preset["backbone"]), **preset["heads"])
    size = config.backbone_config.space.resolve(options.size or preset["size"])
    args = PoaTrainingArguments(
        per_device_train_batch_size=options.batch or preset["batch"], pack_crops=options.pack_crops, **preset["crops"]
    )
    parts = count_step(config, size, args, bf16)

    print(table_head(device_name()))
    print(
        f"full {config.backbone_config.space.full}, elastic {size}, {args.per_device_train_batch_size} images, "
        f"{'bfloat16' if bf16 else 'float32'}\n"
    )
    step = Work()
    for work in parts.values():
        step.add(work)
    print(f"{'part':<30} {'launches':>9} {'share':>7} {'GB':>8}")
    for part, work in [*parts.items(), ("step", step)]:
        print(f"{part:<30} {work.launches:>9,} {work.launches / step.launches:>7.1%} {work.bytes / 1e9:>8,.1f}")
    print(f"\n{'operation':<58} {'launches':>9}")
    for name, launches in step.operations.most_common(options.operations):
        print(f"{name:<58} {launches:>9,}")
    print()
    figures = {
        "launches": step.launches,
        "gigabytes": step.bytes / 1e9,
        "parts": {part: work.launches for part, work in parts.items()},
        "gigabytes_by_part": {part: work.bytes / 1e9 for part, work in parts.items()},
        "operations": {name: count for name, count in step.operations.most_common() if count},
    }
    if options.compile:
        recorder = Recorder()
        count_step(config, size, args, bf16, recorder)
        figures |= compiled(recorder, step, bf16)
    print(json.dumps({**figures, "size": str(size), "device": device_name(), **versions()}))


def compiled(recorder: Recorder, step: Work, bf16: bool) -> dict:
    """Print what each kind of block and loss launches and moves in a step, as it is and compiled.

    Args:
        recorder: Holds the kinds.
        step: The work of the step as it is.
        bf16: Whether the step is computed in bfloat16.

    Returns:
        The figures of the kinds and of the step.
    """
    print(
        f"{'kind':<46} {'calls':>6} {'launches':>9} {'functions':>9} {'loops':>9} {'of PyTorch':>10} {'GB':>8} "
        f"{'compiled':>9}"
    )
    rows, by_functions, by_loops, bytes_moved = {}, step.launches, step.launches, step.bytes
    for kind in recorder.kinds.values():
        plain, generated = plain_work(kind, bf16), compiled_work(kind, bf16)
        library, functions, loops = (generated.operations[name] for name in ("library", "functions", "loops"))
        counts = {
            "calls": kind.calls,
            "launches": plain.launches,
            "compiled_by_functions": library + functions,
            "compiled_by_loops": library + loops,
            "library": library,
        }
        moved = {"gigabytes": plain.bytes / 1e9, "compiled_gigabytes": generated.bytes / 1e9}
        rows[str(kind)] = counts | moved
        print(
            f"{kind!s:<46} {counts['calls']:>6,} {counts['launches']:>9,} {counts['compiled_by_functions']:>9,} "
            f"{counts['compiled_by_loops']:>9,} {counts['library']:>10,} {moved['gigabytes']:>8,.2f} "
            f"{moved['compiled_gigabytes']:>9,.2f}",
            flush=True,
        )
        by_functions -= plain.launches - library - functions
        by_loops -= plain.launches - library - loops
        bytes_moved -= plain.bytes - generated.bytes
    print(
        f"\nstep compiled: {by_functions:,} launches by functions, {by_loops:,} by loops; {bytes_moved / 1e9:,.1f} GB\n"
    )
    return {
        "kinds": rows,
        "compiled_launches_by_functions": by_functions,
        "compiled_launches_by_loops": by_loops,
        "compiled_gigabytes": bytes_moved / 1e9,
    }


if __name__ == "__main__":
    main()
