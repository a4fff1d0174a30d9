"""What a whole training step costs on one device, as it is run: forward, backward, clipping, AdamW, moving average.

    python benchmarks/gpu_step.py                                   # ViT-L, published heads, 50 images, bfloat16
    python benchmarks/gpu_step.py --compile off --batch 100
    python benchmarks/gpu_step.py --preset small --batch 512        # 384x12 on 32 pixels: bound by launches
    python benchmarks/gpu_step.py --preset tiny --float32           # for a CPU

Random images that are on the device already go through steps of several elastic sizes, drawn in turn as a run draws
them. The seconds of a step are the median over the rounds of the mean over the sizes. `mfu` is the rate of the matrix
products of a step (backward passes count twice, recomputation does not count) over that of one large matrix product,
measured in the same call. The last line is one JSON object.
"""

import argparse
import json
import statistics
import time

import torch
from parts.machine import device_name, find_device, matrix_rate, table_head, versions
from parts.timing import synchronize

from poa_hf import PoaConfig, PoaForPreTraining, PoaTrainingArguments, PoaViTConfig
from poa_hf.models.compiled_blocks import BlockCompiler
from poa_hf.training.compilation import expected_compilations
from poa_hf.training.optimization import build_optimizer, hyperparameters_at, set_hyperparameters, step_unless
from poa_hf.training.speed import StepFlops

PRESETS = {
    "vit_large": dict(backbone={}, heads={}, crops={}, batch=50, sizes=("384x12", "768x12", "1024x23")),
    "small": dict(
        backbone=dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=32, patch_size=4,
                      min_hidden_size=192, min_num_hidden_layers=6),
        heads=dict(num_prototypes=[4096, 8192]),
        crops=dict(global_crop_size=32, local_crop_size=16), batch=512, sizes=("192x6", "256x9", "384x11"),
    ),
    "tiny": dict(
        backbone=dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, min_hidden_size=32,
                      min_num_hidden_layers=1, image_size=32),
        heads=dict(num_prototypes=[64, 128], head_hidden_size=64, head_bottleneck_size=32),
        crops=dict(global_crop_size=32, local_crop_size=16), batch=4, sizes=("32x1", "64x1"),
    ),
}  # fmt: skip


class WholeStep:
    """Makes training steps on random images that are on the device."""

    def __init__(self, config: PoaConfig, args: PoaTrainingArguments, device: torch.device, bf16: bool):
        self.args, self.device, self.bf16 = args, device, bf16
        with device:
            self.model = PoaForPreTraining(config).train()
        self.optimizer = build_optimizer(self.model, args)
        self.values = hyperparameters_at(args.masked_prediction_start_step, args, args.per_device_train_batch_size)
        set_hyperparameters(self.optimizer, self.values)
        batch, grid = (
            args.per_device_train_batch_size,
            (args.global_crop_size // config.backbone_config.patch_grid) ** 2,
        )
        self.global_crops = torch.randn(2 * batch, 3, args.global_crop_size, args.global_crop_size, device=device)
        local_shape = (args.num_local_crops * batch, 3, args.local_crop_size, args.local_crop_size)
        self.local_crops = torch.randn(*local_shape, device=device)
        masks = torch.zeros(2 * batch, grid, dtype=torch.bool)
        masks[::2, : max(1, int(0.3 * grid))] = True  # half of the crops, 30 % of their patches
        self.masked_patches = masks.flatten().nonzero().squeeze(1).to(device)
        self.masks = masks.to(device)

    def __call__(self, size) -> None:
        """Make one step whose elastic student has a size."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.model(
                self.global_crops, self.local_crops, self.masks, size, 0.07,
                masked_patches=self.masked_patches, pack_crops=self.args.pack_crops,
            )  # fmt: skip
        output.loss.backward()
        norms = [
            torch.nn.utils.clip_grad_norm_(module.parameters(), self.args.max_grad_norm)
            for module in (self.model.student, self.model.student_head)
        ]
        skip = ~torch.isfinite(output.loss.detach() + torch.stack(norms).norm())
        step_unless(skip, self.optimizer)
        self.model.update_teacher(self.values.teacher_momentum, skip)
        self.optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="vit_large")
    parser.add_argument("--batch", type=int, help="images")
    parser.add_argument("--compile", choices=("blocks", "off"), default="blocks")
    parser.add_argument("--pack_crops", action="store_true", help="global and local crops in one pass")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of all sizes")
    parser.add_argument("--float32", action="store_true", help="without autocast to bfloat16")
    options = parser.parse_args()
    preset, device, bf16 = PRESETS[options.preset], find_device(), not options.float32
    torch.manual_seed(0)
    batch = options.batch or preset["batch"]
    config = PoaConfig(backbone_config=PoaViTConfig(drop_path_rate=0.2, **preset["backbone"]), **preset["heads"])
    args = PoaTrainingArguments(per_device_train_batch_size=batch, pack_crops=options.pack_crops, **preset["crops"])
    sizes = [config.backbone_config.space.resolve(size) for size in preset["sizes"]]
    rate = matrix_rate(device, torch.bfloat16 if bf16 else torch.float32)

    started = time.perf_counter()
    step = WholeStep(config, args, device, bf16)
    synchronize(device)
    made = time.perf_counter() - started
    compiler = BlockCompiler(expected_compilations(step.model, args)) if options.compile == "blocks" else None
    step.model.compile_blocks(compiler)
    for size in sizes * 2:
        step(size)
    synchronize(device)
    warm = time.perf_counter() - started - made
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rounds = []
    for _ in range(options.repeats):
        synchronize(device)
        started = time.perf_counter()
        for size in sizes:
            step(size)
        synchronize(device)
        rounds.append((time.perf_counter() - started) / len(sizes))
    seconds = statistics.median(rounds)
    counted = StepFlops(config, args)
    flops = statistics.mean(counted.of_step(size) for size in sizes)
    figures = {
        "seconds": seconds,
        "images_per_second": batch / seconds,
        "mfu": flops / seconds / rate,
        "tflops": flops / seconds / 1e12,
        "matrix_tflops": rate / 1e12,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9 if device.type == "cuda" else None,
        "model_seconds": made,
        "first_steps_seconds": warm,
        "compilations": compiler.compilations if compiler else 0,
        "recompilations": compiler.recompilations if compiler else 0,
        "compile_seconds": compiler.seconds if compiler else 0.0,
    }
    print(table_head(device_name()))
    print(
        f"{options.preset}: full {config.backbone_config.space.full}, elastic {', '.join(map(str, sizes))}, {batch} "
        f"images x (2 x {args.global_crop_size} px + {args.num_local_crops} x {args.local_crop_size} px), "
        f"{'bfloat16' if bf16 else 'float32'}, compile {options.compile}\n"
    )
    for name, value in figures.items():
        print(f"{name:<22} {'-' if value is None else format(value, ',.3f')}")
    named = {"preset": options.preset, "batch": batch, "compile": options.compile, "bf16": bf16}
    named["pack_crops"] = options.pack_crops
    print(json.dumps({**named, **figures, "device": device_name(), **versions()}))


if __name__ == "__main__":
    main()
