"""What each saving in a training step gains: parts with and without it, and steps with all savings and with none.

    python benchmarks/step_parts.py                                   # a CPU scale
    python benchmarks/step_parts.py --preset vit_large --bf16         # published sizes; for a GPU
    python benchmarks/step_parts.py --compile                         # torch.compile too, which takes minutes

Both ways of a pair compute the same, which is checked before they are timed in turn. Time ratios are medians over the
pairs. Memory is what a way holds at its fullest moment beyond parameters and inputs: on a GPU the most that was
allocated, otherwise the bytes of all tensors (parts/live_bytes.py). The table's last row and the headline `ratio` are a
whole step (forward, backward, AdamW, moving average): as it is, over one in which the teacher sees all crops, every
crop has its own pass, dropped images are computed, slices are taken per call, all heads' logits are kept
(parts/plain_losses.py), and AdamW and moving average are loops. Checkpointing, bfloat16 and compilation are options,
not part of either. parts/step_waits.py counts how often the host waits for the device. The last line is one JSON
object.
"""

import argparse
import json
import statistics

import torch
from parts.machine import device_name, find_device, table_head, versions
from parts.step_compile import compile_report
from parts.step_pairs import Pair, pairs, plain_loss, step_loss
from parts.step_setup import BF16_TOLERANCE, PRESETS, StepSetup
from parts.step_waits import step_waits
from parts.timing import check, peak, timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--batch", type=int, help="images")
    parser.add_argument("--repeats", type=int, default=7, help="pairs that are timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, name = find_device(), device_name()
    print(f"{table_head(name)}; {options.repeats} pairs, medians")
    if options.compile:
        # before there is a model here, as other processes do it, and may need the same GPU's memory
        compiled = compile_report(options)
    setup = StepSetup(options.preset, options.batch, options.bf16, device)
    print(
        f"full {setup.full}, elastic {setup.size}, {setup.batch} images x (2 x {setup.sides[0]} px + "
        f"{setup.num_local} x {setup.sides[1]} px), prototypes {setup.model.config.num_prototypes}, "
        f"{'bfloat16' if options.bf16 else 'float32'}\n"
    )
    print(f"{'saving':<34} {'instead of':<30} {'without (s)':>11} {'with (s)':>9} {'time':>6} {'memory':>7}")
    figures = {}
    losses = [loss(setup, setup.model).detach() for loss in (plain_loss, step_loss)]
    check(losses[:1], losses[1:], BF16_TOLERANCE if options.bf16 else 1e-3, "losses of the whole step")
    for pair in pairs(setup):
        row = figures[f"{pair.saving}, not {pair.instead_of}"] = measured(pair, device, options.repeats, options.bf16)
        memory = f"{row['memory_ratio']:>7.3f}" if row["memory_ratio"] is not None else f"{'-':>7}"
        print(
            f"{pair.saving:<34} {pair.instead_of:<30} {row['without_seconds']:>11.4f} {row['with_seconds']:>9.4f} "
            f"{row['ratio']:>6.3f} {memory}",
            flush=True,
        )
    waits = step_waits(device)
    print(f"\na step waits for the device {sum(waits.values())} times {waits or ''}\n")
    summary = {"ratio": row["ratio"], "memory_ratio": row["memory_ratio"], "device": name, **versions()}
    summary |= {"preset": options.preset, "batch": setup.batch}
    summary |= {"bf16": options.bf16, "waits": waits, "pairs": figures}
    summary |= {"compile": compiled} if options.compile else {}
    print(json.dumps(summary))


def measured(pair: Pair, device: torch.device, repeats: int, bf16: bool) -> dict:
    """Seconds, bytes and ratios of both ways of a pair, after they were compared."""
    expected, actual = pair.without(), pair.with_()
    if pair.tolerance is not None:
        check(expected, actual, BF16_TOLERANCE if bf16 else pair.tolerance, f"{pair.saving} and {pair.instead_of}")
    del expected, actual
    ways = {"without": pair.without, "with": pair.with_}
    peaks = {name: peak(run, device) for name, run in ways.items()}
    seconds = {name: [] for name in ways}
    for _ in range(repeats):
        for name, run in ways.items():
            seconds[name].append(timed(run, device))
    ratios = [own / other for own, other in zip(seconds["with"], seconds["without"], strict=True)]
    figures = {"ratio": statistics.median(ratios)}
    figures["memory_ratio"] = peaks["with"] / peaks["without"] if peaks["without"] > 2**16 else None
    for name in ways:
        figures |= {f"{name}_seconds": statistics.median(seconds[name]), f"{name}_bytes": peaks[name]}
    return figures


if __name__ == "__main__":
    main()
