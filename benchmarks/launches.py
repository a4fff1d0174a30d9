"""How many kernels a training step launches, by part of the step and by operation.

    python benchmarks/launches.py                       # ViT-L, published recipe, 50 images, bfloat16
    python benchmarks/launches.py --size 768x12 --float32

The step runs on tensors without memory, so it is counted in seconds, on any machine. What is counted are PyTorch's
operations that compute something (not views): on a GPU each is at least one kernel, whose launch costs the host several
microseconds. The last line is one JSON object.
"""

import argparse
import json
from collections import Counter

from parts.launches import count_step
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
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    config = PoaConfig(backbone_config=PoaViTConfig(drop_path_rate=0.2, **preset["backbone"]), **preset["heads"])
    size = config.backbone_config.space.resolve(options.size or preset["size"])
    args = PoaTrainingArguments(
        per_device_train_batch_size=options.batch or preset["batch"], pack_crops=options.pack_crops, **preset["crops"]
    )
    parts = count_step(config, size, args, bf16=not options.float32)

    print(table_head(device_name()))
    print(
        f"full {config.backbone_config.space.full}, elastic {size}, {args.per_device_train_batch_size} images, "
        f"{'float32' if options.float32 else 'bfloat16'}\n"
    )
    totals = {part: counts.total() for part, counts in parts.items()}
    total = sum(totals.values())
    print(f"{'part':<30} {'launches':>9} {'share':>7}")
    for part, launches in [*totals.items(), ("step", total)]:
        print(f"{part:<30} {launches:>9,} {launches / total:>7.1%}")
    operations: Counter[str] = sum(parts.values(), Counter())
    print(f"\n{'operation':<58} {'launches':>9}")
    for name, launches in operations.most_common(options.operations):
        print(f"{name:<58} {launches:>9,}")
    print()
    print(
        json.dumps(
            {
                "launches": total,
                "parts": totals,
                "operations": dict(operations.most_common()),
                "size": str(size),
                "device": device_name(),
                **versions(),
            }
        )
    )


if __name__ == "__main__":
    main()
