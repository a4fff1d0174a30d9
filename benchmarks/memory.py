"""Peak memory of a step's heads and losses, and of a whole step, beside straightforward implementations.

    python benchmarks/memory.py                        # published heads; a CPU scale of everything else
    python benchmarks/memory.py --bf16
    python benchmarks/memory.py --preset vit_large --bf16                # published sizes; for a GPU

Ours is measured beside two references (plain_losses.py), which give the same loss and gradient: `all heads at once`,
straightforward, as the authors have it, and `head by head`. `heads` are the heads' and losses' forward and backward
passes on given features, `step` is a whole step without the optimizer. Memory is what PyTorch's allocator has given out
at the fullest moment, on top of parameters and inputs. Times (on a CPU, of the CPU) are taken in turn; ratios are
medians over the pairs, to the first reference. The last line is one JSON object.
"""

import argparse
import json
import platform
import statistics
import time
from itertools import accumulate

import numpy as np
import torch
from plain_losses import all_heads_at_once, head_by_head
from torch.profiler import ProfilerActivity, profile

from poa_hf import PoaConfig, PoaForPreTraining, PoaViTConfig
from poa_hf.data.masks import block_masks
from poa_hf.models.head_losses import Tokens

PRESETS = {
    "cpu": dict(
        backbone=dict(
            hidden_size=384, num_hidden_layers=3, num_attention_heads=6, min_hidden_size=192, min_num_hidden_layers=2
        ),
        size="256x2", batch=16,
    ),
    "tiny": dict(
        backbone=dict(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, min_hidden_size=32, min_num_hidden_layers=1
        ),
        size="32x1", batch=2,
    ),
    "vit_large": dict(backbone={}, size="base", batch=50),
}  # fmt: skip
VARIANTS = {
    "all heads at once": all_heads_at_once,
    "head by head": head_by_head,
    "ours": lambda model, *tokens: model._loss(*tokens, return_statistics=False).loss,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--batch", type=int, help="images")
    parser.add_argument("--prototypes", type=int, nargs="+", default=[8192, 16384, 32768, 65536])
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", default=["heads", "step"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    benchmark = Benchmark(options, device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} threads"
    print(f"{name}; torch {torch.__version__}, Python {platform.python_version()}; {options.repeats} repeats, medians")
    print(
        f"full {benchmark.space.full}, elastic {benchmark.size}, {benchmark.batch} images x (2 x 224 px + 8 x 96 px), "
        f"{len(benchmark.inputs[3])} masked patches, prototypes {options.prototypes}, "
        f"{'bfloat16' if options.bf16 else 'float32'}\n"
    )
    print(f"{'part':<6} {'variant':<18} {'peak (MiB)':>10} {'ratio':>7} {'time (s)':>9} {'ratio':>7}")
    figures = {part: benchmark.measured(part) for part in options.parts}
    last = figures[options.parts[-1]]["ours"]
    print(
        "\n"
        + json.dumps(
            {
                "ratio": last["memory_ratio"],
                "time_ratio": last["time_ratio"],
                "device": name,
                "torch": torch.__version__,
                "batch": benchmark.batch,
                "bf16": options.bf16,
                "parts": figures,
            }
        )
    )


class Benchmark:
    def __init__(self, options, device):
        self.options, self.device = options, device
        # on a CPU that others use too, what this process got of it says more than what time passed
        self.clock = time.perf_counter if device.type == "cuda" else time.process_time
        preset = PRESETS[options.preset]
        torch.manual_seed(0)
        config = PoaConfig(
            backbone_config=PoaViTConfig(drop_path_rate=0.0, **preset["backbone"]), num_prototypes=options.prototypes
        )
        self.model = PoaForPreTraining(config).to(device).train()
        self.space = config.backbone_config.space
        self.size = self.space.resolve(preset["size"])
        self.batch = options.batch or preset["batch"]
        grid = (224 // config.backbone_config.patch_size,) * 2
        masks = torch.from_numpy(block_masks(2 * self.batch, grid, np.random.default_rng(0)))
        masked_patches = masks.flatten().nonzero().squeeze(1)
        generator = torch.Generator().manual_seed(0)
        crops = [
            torch.randn(count * self.batch, 3, side, side, generator=generator) for count, side in ((2, 224), (8, 96))
        ]
        self.inputs = [tensor.to(device) for tensor in (*crops, masks, masked_patches)]
        counts = masks.sum(dim=1).clamp(min=1)
        self.patch_weights = (1 / counts)[masked_patches // masks.shape[1]].to(device)

    def tokens(self):
        """The features of teacher, intact and elastic student."""
        global_crops, local_crops, masks, masked_patches = self.inputs
        model = self.model
        with torch.no_grad():
            teacher = model._tokens(model.teacher, global_crops, global_crops[:0], None, masked_patches)
        return teacher, *(
            model._tokens(backbone, global_crops, local_crops, masks, masked_patches)
            for backbone in (model.student, model.student.sliced(self.size))
        )

    def random_tokens(self):
        rows = 2 * self.batch, 8 * self.batch, len(self.patch_weights)
        widths = self.space.full.width, self.space.full.width, self.size.width
        generator = torch.Generator().manual_seed(1)

        def drawn(count, width):
            return torch.randn(count, width, generator=generator).to(self.device).requires_grad_()

        return [Tokens(*(drawn(count, width) for count in rows)) for width in widths]

    def run(self, part, variant):
        """One step; returns seconds. Gradients are freed when it ends."""
        tokens = self.random_tokens() if part == "heads" else None
        self.synchronize()
        start = self.clock()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.options.bf16):
            loss = VARIANTS[variant](self.model, *(tokens or self.tokens()), self.patch_weights, 0.07)
        loss.backward()
        self.synchronize()
        seconds = self.clock() - start
        self.model.zero_grad()
        return seconds

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self, part, variant) -> int:
        """Bytes that PyTorch's allocator has given out at the fullest moment of a step, beyond those before it."""
        if self.device.type == "cuda":
            self.run(part, variant)
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.run(part, variant)
            return torch.cuda.max_memory_allocated() - before
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            self.run(part, variant)
        events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
        return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))

    def measured(self, part) -> dict:
        peaks = {variant: self.peak(part, variant) for variant in VARIANTS}  # also warms up
        seconds = {variant: [] for variant in VARIANTS}
        for _ in range(self.options.repeats):
            for variant in VARIANTS:
                seconds[variant].append(self.run(part, variant))
        reference, figures = next(iter(VARIANTS)), {}
        for variant in VARIANTS:
            pairs = zip(seconds[variant], seconds[reference], strict=True)
            figures[variant] = {
                "peak_bytes": peaks[variant],
                "memory_ratio": peaks[variant] / peaks[reference],
                "seconds": statistics.median(seconds[variant]),
                "time_ratio": statistics.median(own / other for own, other in pairs),
            }
            row = figures[variant]
            print(
                f"{part:<6} {variant:<18} {row['peak_bytes'] / 2**20:>10,.0f} {row['memory_ratio']:>7.3f} "
                f"{row['seconds']:>9.3f} {row['time_ratio']:>7.3f}",
                flush=True,
            )
        return figures


if __name__ == "__main__":
    main()
