"""What a training step costs, part by part, beside the same passes of plain stock models.

    python benchmarks/step_time.py                                   # a CPU scale
    python benchmarks/step_time.py --preset vit_large --bf16         # published sizes; for a GPU

Each of our parts and its plain counterpart are timed in turn, so that a machine that slows down slows both; a ratio is
the median over the pairs. The plain step is the sum of: the stock teacher's forward, the stock full model's and the
stock sub-network's forward and backward, our heads and losses on fixed features, AdamW and the moving average.
Utilisation is the FLOPs of the matrix products in a step (recomputation not counted) over its time, as a share of the
rate of one large matrix product, measured in the same run.
The last line is one JSON object.
"""

import argparse
import json
import statistics

import torch
from parts.flops import count_flops
from parts.machine import device_name, find_device, matrix_rate, table_head, versions
from parts.presets import PRESETS
from parts.timed_step import TimedStep
from parts.timing import PeakMemory

from poa_hf import PoaConfig, PoaForPreTraining, PoaTrainingArguments, PoaViTConfig
from poa_hf.models.activation_checkpointing import enable_activation_checkpointing
from poa_hf.models.compiled_blocks import BlockCompiler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--size", help="sub-network of the elastic pass")
    parser.add_argument("--batch", type=int, help="images")
    parser.add_argument("--repeats", type=int, help="pairs of steps; 15 on a CPU, 5 on a GPU")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true", help="compile blocks")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    preset = PRESETS[options.preset]
    device = find_device()
    options.repeats = options.repeats or (15 if device.type == "cpu" else 5)
    torch.manual_seed(0)
    config = PoaConfig(backbone_config=PoaViTConfig(drop_path_rate=0.0, **preset["backbone"]), **preset["heads"])
    with device:
        model = PoaForPreTraining(config).train()
    size = config.backbone_config.space.resolve(options.size or preset["size"])
    args = PoaTrainingArguments(per_device_train_batch_size=options.batch or preset["batch"], **preset["crops"])
    step = TimedStep(model, size, args, device, options.bf16)
    flops = count_flops(step.ours)
    rate = matrix_rate(device, torch.bfloat16 if options.bf16 else torch.float32)
    if options.gradient_checkpointing:
        enable_activation_checkpointing(model.student)
    if options.compile:
        model.compile_blocks(BlockCompiler())
    for _ in range(3):
        step.ours(), step.plain()
    ours, plain = [], []
    with PeakMemory(device) as peak:
        step.ours()
    for _ in range(options.repeats):
        ours.append(step.ours())
        plain.append(step.plain())
    report(step, ours, plain, peak.bytes, flops, rate, options)


def report(step, ours, plain, peak, flops, rate, options) -> None:
    device = device_name()
    print(f"{table_head(device)}; {options.repeats} repeats, medians")
    space = step.model.config.backbone_config.space
    args = step.args
    print(
        f"full {space.full}, elastic {step.size}, {args.per_device_train_batch_size} images x (2 x "
        f"{args.global_crop_size} px + {args.num_local_crops} x {args.local_crop_size} px), prototypes "
        f"{step.model.config.num_prototypes}, {'bfloat16' if step.bf16 else 'float32'}\n"
    )
    print(f"{'part':<30} {'ours (s)':>9} {'plain (s)':>10} {'ratio':>7}")
    figures = {}
    for part in ours[0]:
        mine = statistics.median(run[part] for run in ours)
        if part in plain[0]:
            theirs = statistics.median(run[part] for run in plain)
            ratio = statistics.median(a[part] / b[part] for a, b in zip(ours, plain, strict=True))
            figures[part] = {"seconds": mine, "plain_seconds": theirs, "ratio": ratio}
            print(f"{part:<30} {mine:>9.3f} {theirs:>10.3f} {ratio:>7.3f}")
        else:
            figures[part] = {"seconds": mine}
            print(f"{part:<30} {mine:>9.3f}")
    seconds, batch = figures["step"]["seconds"], args.per_device_train_batch_size
    utilisation = flops / seconds / rate
    print(
        f"\n{batch / seconds:,.1f} images/s, peak memory {peak / 2**30:.2f} GB, {flops / 1e12:.3f} TFLOP a step, "
        f"utilisation {utilisation:.1%} of a measured {rate / 1e12:.2f} TFLOP/s ('step' is without data)\n"
    )
    print(
        json.dumps(
            {
                "ratio": figures["step"]["ratio"],
                "elastic_ratio": figures["elastic"]["ratio"],
                "step_ratio": figures["step"]["ratio"],
                "seconds": seconds,
                "images_per_second": batch / seconds,
                "peak_memory_bytes": peak,
                "flops": flops,
                "matmul_flops_per_second": rate,
                "utilisation": utilisation,
                "device": device,
                **versions(),
                "size": str(step.size),
                "parts": figures,
            }
        )
    )


if __name__ == "__main__":
    main()
