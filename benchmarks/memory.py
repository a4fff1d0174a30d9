"""Peak memory of a step's heads and losses, and of a whole step, beside straightforward implementations.

    python benchmarks/memory.py                                          # published heads, the rest at a CPU scale
    python benchmarks/memory.py --preset vit_large --bf16 --repeats 0    # published sizes: memory only, on any machine
    python benchmarks/memory.py --preset vit_large --bf16                # and times: for a GPU

Ours is measured beside two references (parts/plain_losses.py) with the same loss and gradient: `all heads at once`, the
straightforward way that the authors take, and `head by head`. Both keep the activations of all passes until the loss is
complete. `heads` stands for the forward and backward passes of heads and losses on fixed features, `step` for a whole
step without the optimizer.

Memory is what a step holds at its fullest moment beyond parameters and inputs: on a GPU the most that was allocated,
otherwise the bytes of all tensors in a step of tensors without memory (parts/live_bytes.py). Times are taken in turn
(on a CPU, CPU time); ratios are medians over the pairs, to the first reference. The last line is one JSON object.
"""

import argparse
import gc
import json
import statistics
import time
from contextlib import nullcontext

import numpy as np
import torch
from parts.live_bytes import LiveBytes
from parts.machine import device_name, find_device, table_head, versions
from parts.plain_losses import Tokens, all_heads_at_once, head_by_head, ours
from parts.timing import synchronize
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.initialization import no_init_weights

from poa_hf import PoaConfig, PoaForPreTraining, PoaResNetConfig, PoaSwinConfig, PoaViTConfig
from poa_hf.data.masks import block_masks
from poa_hf.models.activation_checkpointing import enable_activation_checkpointing

PRESETS = {
    "cpu": dict(
        backbone=dict(
            hidden_size=384, num_hidden_layers=3, num_attention_heads=6, min_hidden_size=192, min_num_hidden_layers=2,
            drop_path_rate=0.0,
        ),
        size="256x2", batch=16,
    ),
    "tiny": dict(
        backbone=dict(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, min_hidden_size=32, min_num_hidden_layers=1,
            drop_path_rate=0.0,
        ),
        size="32x1", batch=2,
    ),
    "vit_large": dict(backbone={}, size="base", batch=50),
    "swin_base": dict(family=PoaSwinConfig, backbone={}, size="small", batch=64),
    "resnet152": dict(family=PoaResNetConfig, backbone={}, size="101", batch=40),
}  # fmt: skip
VARIANTS = {
    "all heads at once": all_heads_at_once,
    "head by head": head_by_head,
    "ours": ours,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--batch", type=int, help="images")
    parser.add_argument("--size", help="sub-network of the elastic pass")
    parser.add_argument("--prototypes", type=int, nargs="+", default=[8192, 16384, 32768, 65536])
    parser.add_argument("--drop_path_rate", type=float, help="stochastic depth, if not the published one")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--pack_crops", action="store_true", help="global and local crops in one pass")
    parser.add_argument("--repeats", type=int, default=5, help="pairs that are timed; 0: memory only")
    parser.add_argument("--parts", nargs="+", choices=["heads", "step"], default=["heads", "step"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = find_device()
    counted = Step(options, device, fake=device.type == "cpu")
    timed = counted if device.type == "cuda" else options.repeats and Step(options, device, fake=False)
    name = device_name()
    print(f"{table_head(name)}; {options.repeats} repeats, medians")
    print(
        f"full {counted.full}, elastic {counted.size}, {counted.batch} images x (2 x 224 px + 8 x 96 px), "
        f"{counted.num_masked} masked patches, prototypes {options.prototypes}, "
        f"{'bfloat16' if options.bf16 else 'float32'}"
        f"{', activation checkpointing' if options.gradient_checkpointing else ''}\n"
    )
    print(f"{'part':<6} {'variant':<18} {'peak (MiB)':>10} {'ratio':>7} {'time (s)':>9} {'ratio':>7}")
    figures = {part: measured(part, counted, timed, options.repeats) for part in options.parts}
    last = figures[options.parts[-1]]["ours"]
    held = counted.held_bytes()
    print(f"\nweights and AdamW's moments: {held / 1e9:.1f} GB; with ours, {(held + last['peak_bytes']) / 1e9:.1f} GB")
    summary = {"ratio": last["memory_ratio"], "time_ratio": last.get("time_ratio"), "device": name}
    summary |= {"held_bytes": held, "total_bytes": held + last["peak_bytes"]}
    summary |= {**versions(), "batch": counted.batch, "bf16": options.bf16, "parts": figures}
    print("\n" + json.dumps(summary))


def measured(part, counted, timed, repeats) -> dict:
    peaks = {variant: counted.peak(part, variant) for variant in VARIANTS}
    seconds = {variant: [] for variant in VARIANTS}
    for repeat in range(repeats + 1 if repeats else 0):
        for variant in VARIANTS:
            taken = timed.run(part, variant)
            if repeat:  # the first is for warming up
                seconds[variant].append(taken)
    reference, figures = next(iter(VARIANTS)), {}
    for variant in VARIANTS:
        row = figures[variant] = {
            "peak_bytes": peaks[variant],
            "memory_ratio": peaks[variant] / peaks[reference],
        }
        line = f"{part:<6} {variant:<18} {row['peak_bytes'] / 2**20:>10,.0f} {row['memory_ratio']:>7.3f}"
        if repeats:
            row["seconds"] = statistics.median(seconds[variant])
            pairs = zip(seconds[variant], seconds[reference], strict=True)
            row["time_ratio"] = statistics.median(own / other for own, other in pairs)
            line += f" {row['seconds']:>9.3f} {row['time_ratio']:>7.3f}"
        print(line, flush=True)
    return figures


class Step:
    """A model and a batch, of real tensors or of `fake` ones, which have no memory."""

    def __init__(self, options, device, fake: bool):
        self.options, self.device, self.fake = options, device, fake
        # on a CPU that others use too, what this process got of it says more than what time passed
        self.clock = time.perf_counter if device.type == "cuda" else time.process_time
        preset = PRESETS[options.preset]
        family = preset.get("family", PoaViTConfig)
        depth = {} if options.drop_path_rate is None else {"drop_path_rate": options.drop_path_rate}
        config = PoaConfig(
            backbone_config=family(**preset["backbone"], **depth),
            num_prototypes=options.prototypes,
        )
        space = config.backbone_config.space
        self.full, self.size, self.batch = space.full, space.resolve(options.size or preset["size"]), options.batch
        self.batch = options.batch or preset["batch"]
        grid = (224 // config.backbone_config.patch_grid,) * 2
        masks = torch.from_numpy(block_masks(2 * self.batch, grid, np.random.default_rng(0)))
        masked_patches = masks.flatten().nonzero().squeeze(1)
        self.num_masked = len(masked_patches)
        weights = (1 / masks.sum(dim=1).clamp(min=1))[masked_patches // masks.shape[1]]
        torch.manual_seed(0)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext()
        with self.mode:
            with no_init_weights() if fake else nullcontext():
                self.model = PoaForPreTraining(config).train()
            if not fake:
                self.model.to(device)
            if options.gradient_checkpointing:
                enable_activation_checkpointing(self.model.student)
            crops = [torch.randn(count * self.batch, 3, side, side) for count, side in ((2, 224), (8, 96))]
            hidden = [torch.empty_like(t) if fake else t for t in (masks, masked_patches, weights)]
            *self.inputs, self.patch_weights = (tensor.to(device) for tensor in (*crops, *hidden))
            full, own = (config.backbone_config.plain_config(size).hidden_size for size in (space.full, self.size))
            widths, num_local = (full, full, own), (0, 8 * self.batch, 8 * self.batch)
            self.features = [
                Tokens(
                    *(
                        torch.randn(rows, width, device=device, requires_grad=True)
                        for rows in (2 * self.batch, local, self.num_masked)
                    )
                )
                for width, local in zip(widths, num_local, strict=True)
            ]

    def run(self, part, variant) -> float:
        """One step; returns seconds. Gradients are freed when it ends."""
        with self.mode:
            synchronize(self.device)
            start = self.clock()
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.options.bf16):
                if part == "step" and variant == "ours":
                    global_crops, local_crops, masks, masked_patches = self.inputs
                    loss = self.model(
                        global_crops, local_crops, masks, self.size, 0.07,
                        masked_patches=masked_patches, pack_crops=self.options.pack_crops,
                    ).loss  # fmt: skip
                else:
                    tokens = self.features if part == "heads" else self.tokens()
                    loss = VARIANTS[variant](self.model, *tokens, self.patch_weights, 0.07)
                    del tokens
            loss.backward()
            synchronize(self.device)
            seconds = self.clock() - start
            self.model.zero_grad()
            for tokens in self.features:
                tokens.global_.grad = tokens.local.grad = tokens.masked.grad = None
        return seconds

    def tokens(self):
        """The features of teacher, intact and elastic student."""
        global_crops, local_crops, masks, masked_patches = self.inputs
        model, image_tokens = self.model, self.model.student.image_tokens
        view, patch = masked_patches // masks.shape[1], masked_patches % masks.shape[1]

        def branch(backbone, masks, local_crops):
            features, patches = image_tokens(backbone(global_crops, bool_masked_pos=masks))
            local = image_tokens(backbone(local_crops))[0] if len(local_crops) else features[:0]
            return Tokens(features, local, patches[view, patch])

        with torch.no_grad():
            teacher = branch(model.teacher, None, local_crops[:0])
        return teacher, *(
            branch(student, masks, local_crops) for student in (model.student, model.student.sliced(self.size))
        )

    def held_bytes(self) -> int:
        """What lies in memory between steps: all weights, and two moments of each that learns."""
        sizes = [(t.numel() * t.element_size(), t.requires_grad) for t in self.model.parameters()]
        return sum(size * (3 if learns else 1) for size, learns in sizes)

    def peak(self, part, variant) -> int:
        gc.collect()
        if not self.fake:
            self.run(part, variant)
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.run(part, variant)
            return torch.cuda.max_memory_allocated() - before
        with self.mode, LiveBytes() as live:
            self.run(part, variant)
        return live.peak


if __name__ == "__main__":
    main()
