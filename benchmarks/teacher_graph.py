"""What a CUDA graph would be worth for the teacher's pass, the one part of a step whose shapes never change.

    python benchmarks/teacher_graph.py                              # ViT-L, 50 images, bfloat16; needs a GPU for graphs
    python benchmarks/teacher_graph.py --preset tiny                # for a CPU, which has none

The teacher sees the global crops without masks and keeps no activations, so its pass (rounding its weights, and all its
blocks) can be recorded once and replayed. Students cannot: each step has another size and another number of masked
patches, and activations of one block must outlive the next. The pass is timed as it is and with compiled blocks, each
launched kernel by kernel and replayed: the seconds until the host has queued it, and until the device is done. A replay
has to give the same features as the pass, also after the weights have changed. The last line is one JSON object.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from gpu_step import PRESETS
from parts.machine import device_name, find_device, table_head, versions
from parts.timing import synchronize

from poa_hf import PoaConfig, PoaForPreTraining, PoaTrainingArguments, PoaViTConfig
from poa_hf.models.compiled_blocks import BlockCompiler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="vit_large")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    preset, device = PRESETS[options.preset], find_device()
    torch.manual_seed(0)
    args = PoaTrainingArguments(per_device_train_batch_size=preset["batch"], **preset["crops"])
    config = PoaConfig(backbone_config=PoaViTConfig(**preset["backbone"]), **preset["heads"])
    with device:
        teacher = PoaForPreTraining(config).train().teacher
    side = args.global_crop_size
    crops = torch.randn(2 * args.per_device_train_batch_size, 3, side, side, device=device)

    figures = {}
    for name, compiler in (("eager", None), ("blocks", BlockCompiler())):

        def teacher_pass(compiler: BlockCompiler | None = compiler) -> torch.Tensor:
            # autocast may not keep casts of a recorded pass for other passes
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
                return teacher.sliced(None, torch.bfloat16, compiler)(crops).last_hidden_state

        figures[name] = timed(teacher_pass, options.repeats, device)
        figures[f"{name}_graph"] = replayed(teacher_pass, teacher, options.repeats) if device.type == "cuda" else None
    print(f"{table_head(device_name())}; {options.preset}, {len(crops)} crops of {side} px, bfloat16\n")
    print(f"{'teacher':<14} {'queued (s)':>11} {'done (s)':>10}")
    for name, row in figures.items():
        print(f"{name:<14} " + ("needs a GPU" if row is None else f"{row['queued']:>11.4f} {row['seconds']:>10.4f}"))
    print(json.dumps({"preset": options.preset, **figures, "device": device_name(), **versions()}))


def timed(function: Callable[[], object], repeats: int, device: torch.device) -> dict[str, float]:
    """Return the seconds until a function's kernels are queued and until they are done, medians of several calls."""
    function(), function()
    queued, done = [], []
    for _ in range(repeats):
        synchronize(device)
        started = time.perf_counter()
        function()
        queued.append(time.perf_counter() - started)
        synchronize(device)
        done.append(time.perf_counter() - started)
    return {"queued": statistics.median(queued), "seconds": statistics.median(done)}


def replayed(function: Callable[[], torch.Tensor], teacher: torch.nn.Module, repeats: int) -> dict[str, float | bool]:
    """Record a function's kernels, replay them, and compare the results; `function` has run before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # recording wants a warm-up on a stream of its own
        function()
    torch.cuda.current_stream().wait_stream(stream)
    before = torch.cuda.memory_reserved()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    memory = torch.cuda.memory_reserved() - before
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(0.99)  # in place, as the moving average
    graph.replay()
    torch.testing.assert_close(result, function(), rtol=2e-2, atol=2e-2)
    return {**timed(graph.replay, repeats, torch.device("cuda")), "memory_gb": memory / 1e9}


if __name__ == "__main__":
    main()
