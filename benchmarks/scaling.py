"""How long processes wait for each other when each trains a different sub-network.

    python benchmarks/scaling.py                              # the three published spaces, one image per process
    python benchmarks/scaling.py --images 50 --bf16           # for a GPU
    python benchmarks/scaling.py --scale tiny --steps 300     # in seconds

A step lasts as long as that of the slowest process. What an elastic pass takes (forward and backward, all crops) is
measured on the device at hand for a grid of sizes and estimated in between, as `poa select` estimates latencies; the
rest of a step (teacher, intact student, heads and losses) is measured once. Optimizer, data and communication are left
out: they are the same for different and equal sub-networks, and only make the difference smaller. Then the sizes that
the processes draw are simulated step by step. The last line is one JSON object.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from parts.machine import device_name, find_device, matrix_rate, table_head, versions
from parts.timing import timed
from torch.utils.flop_counter import FlopCounterMode

from poa_hf import ElasticSpace, PoaConfig, PoaForPreTraining, PoaResNetConfig, PoaSwinConfig, PoaViTConfig, SubNetwork
from poa_hf.selection.costs import costs
from poa_hf.selection.estimate import estimate, latency_features
from poa_hf.selection.latency_table import grid

PUBLISHED = dict(global_size=224, local_size=96, num_local=8, heads={})
TINY_HEADS = dict(num_prototypes=[64], head_hidden_size=32, head_bottleneck_size=16)
TINY = dict(global_size=32, local_size=32, num_local=2, heads=TINY_HEADS)
SCALES = {
    "published": (
        PUBLISHED,
        {"vit": PoaViTConfig, "swin": PoaSwinConfig, "resnet": PoaResNetConfig},
    ),
    "tiny": (
        TINY,
        {
            "vit": lambda **options: PoaViTConfig(
                hidden_size=64, num_hidden_layers=4, num_attention_heads=4, min_hidden_size=32,
                min_num_hidden_layers=2, image_size=32, patch_size=8, **options,
            ),
            "swin": lambda **options: PoaSwinConfig(
                embed_dim=16, depths=[2, 2, 4, 2], num_heads=[4, 8, 16, 32], window_size=1, image_size=32,
                min_embed_dim=8, min_depths=[2, 2, 2, 2], **options,
            ),
            "resnet": lambda **options: PoaResNetConfig(
                embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[1, 2, 3, 1], base_width=16, num_groups=4,
                min_base_width=8, min_depths=[1, 1, 1, 1], image_size=32, **options,
            ),
        },
    ),
}  # fmt: skip
PROCESSES = (8, 64, 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=("vit", "swin", "resnet"), default=["vit", "swin", "resnet"])
    parser.add_argument("--scale", choices=SCALES, default="published")
    parser.add_argument("--images", type=int, default=1, help="images per process")
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement; the fastest counts")
    parser.add_argument("--steps", type=int, default=2000, help="steps that are played through")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    device, name = find_device(), device_name()
    # on a CPU, which others may use as well, the time that this process computes
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    rate = matrix_rate(device, torch.bfloat16 if options.bf16 else torch.float32, clock)
    head = table_head(f"{name}: {rate / 1e9:,.0f} GFLOP/s of matrix products")
    print(f"{head}; {options.images} images per process, {options.steps} steps\n")
    figures = {}
    for family in options.families:
        settings, configs = SCALES[options.scale]
        measured = measure(configs[family](), settings, device, options, clock)
        figures[family] = found = {**measured["figures"], "utilisation": measured["flop_rate"] / rate}
        found["processes"] = simulate(measured["space"], measured["seconds"], options.steps, options.seed)
        report(family, found)
    how = {"images": options.images, "steps": options.steps, "scale": options.scale, "seed": options.seed}
    first = figures[options.families[0]]["processes"]["64"]
    print(f"a step of 64 processes with own sub-networks over one with the same: {first['ratio']:.3f}\n")
    print(json.dumps({"ratio": first["ratio"], "device": name, **versions(), **how, "families": figures}))


def fastest(function: Callable[[], Any], device: torch.device, repeats: int, clock: Callable[[], float]) -> float:
    """Seconds of the fastest call, after one that does not count."""
    function()
    return min(timed(function, device, clock) for _ in range(repeats))


def measure(backbone, settings: dict, device: torch.device, options, clock) -> dict:
    """Seconds of a step with each size of the space."""
    torch.manual_seed(0)
    space: ElasticSpace = backbone.space
    model = PoaForPreTraining(PoaConfig(backbone_config=backbone, **settings["heads"])).to(device).train()
    images, size = options.images, settings["global_size"]
    crops = torch.randn(2 * images, 3, size, size, device=device)
    local = torch.randn(
        settings["num_local"] * images, 3, settings["local_size"], settings["local_size"], device=device
    )
    masks = torch.rand(2 * images, (size // backbone.patch_grid) ** 2, device=device) < 0.15

    def step():
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            loss = model(crops, local, masks, space.smallest, 0.07).loss
        loss.backward()
        model.zero_grad()

    def elastic(sub_network: SubNetwork):
        with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
            sliced = model.student.sliced(sub_network)
            loss = sum(sliced(pixels).last_hidden_state.float().mean() for pixels in (crops, local))
        loss.backward()
        model.zero_grad()

    with FlopCounterMode(display=False) as counter:
        elastic(space.full)
    measured = {
        size: 1000 * fastest(lambda size=size: elastic(size), device, options.repeats, clock)
        for size in dict.fromkeys((*grid(space), space.full))
    }
    rest = max(0.0, fastest(step, device, options.repeats, clock) - measured[space.smallest] / 1000)
    features = {size: latency_features(size, cost) for size, cost in costs(backbone).items()}
    estimated = estimate(features, measured)
    passes = {size: milliseconds / 1000 for size, milliseconds in estimated.milliseconds.items()}
    figures = {
        "sizes": len(space),
        "measured_sizes": len(measured),
        "mean_error": estimated.mean_error,
        "smallest_pass_seconds": passes[space.smallest],
        "full_pass_seconds": passes[space.full],
        "rest_of_step_seconds": rest,
    }
    seconds = {size: rest + value for size, value in passes.items()}
    flop_rate = counter.get_total_flops() / passes[space.full]
    return {"space": space, "seconds": seconds, "figures": figures, "flop_rate": flop_rate}


def simulate(space: ElasticSpace, seconds: dict[SubNetwork, float], steps: int, seed: int) -> dict[str, dict]:
    """For each number of processes: the mean time of a step, and the time until the slowest process is done."""
    drawn = np.array(
        [[seconds[space.sub_network_at(step, seed, rank)] for step in range(steps)] for rank in range(max(PROCESSES))]
    )  # (processes, steps)
    results = {}
    for count in PROCESSES:
        groups = drawn.reshape(-1, count, steps)
        mean, until_last = float(groups.mean()), float(groups.max(axis=1).mean())
        # with the same sub-networks, every process takes the mean over steps
        ratio = {"efficiency": mean / until_last, "ratio": until_last / mean}
        results[str(count)] = {"mean_seconds": mean, "max_seconds": until_last, **ratio}
    return results


def report(family: str, found: dict) -> None:
    error = "none estimated" if found["mean_error"] is None else f"mean error {found['mean_error']:.1%}"
    print(f"{family}: {found['sizes']} sizes, {found['measured_sizes']} measured ({error}); elastic pass ", end="")
    print(f"{found['smallest_pass_seconds']:.3g} to {found['full_pass_seconds']:.3g} s, ", end="")
    print(f"rest of a step {found['rest_of_step_seconds']:.3g} s; utilisation at full size {found['utilisation']:.0%}")
    print(f"{'processes':>9} {'mean step (s)':>14} {'slowest (s)':>12} {'efficiency':>11} {'own/same':>9}")
    for count, row in found["processes"].items():
        print(
            f"{count:>9} {row['mean_seconds']:>14.4g} {row['max_seconds']:>12.4g} {row['efficiency']:>11.1%} "
            f"{row['ratio']:>9.3f}"
        )
    print()


if __name__ == "__main__":
    main()
