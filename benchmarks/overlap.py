"""What averaging gradients over processes sends and how long it takes, beside the backward pass and after it.

    python benchmarks/overlap.py                                  # seconds; on any machine
    python benchmarks/overlap.py --block_ms 20 --send_ms 400      # other delays

The first table is computed: bytes from the parameters of a ViT-L with the published heads, seconds from the rates that
vendors state for links and from what `--rate` says a device computes. Each layer is one message; it is sent when its
gradients are complete and the link is free.

The second table is measured on CPUs, with delays that are injected: in the last pass, each block's backward pass takes
`--block_ms` longer, and sending all gradients takes `--send_ms`, on a link that carries one bucket after the other;
gloo averages them. A small model makes the same steps without sending, with gradients that are all complete before the
first is sent, and with gradients that become complete layer by layer, as they do in training. What a step waits is the
time from its last gradient to its last average. Gradients are compared to the last bit. The last line is one JSON
object with the ratio of what the last two wait.
"""

import argparse
import json
import multiprocessing
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from parts.machine import table_head, versions
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from poa_hf import PoaConfig, PoaForPreTraining, PoaViTConfig, SubNetwork
from poa_hf.models.flops import count_forward_flops

# GB/s that a process can send to all others together, by number of processes. NVLink 4 carries 900 GB/s in both
# directions. Where nodes of 8 GPUs average over a network, each of a node's ports carries its share of what one GPU
# sends, so that their rates add up (https://docs.nvidia.com/dgx/dgxh100-user-guide: eight ports of 400 Gb/s).
LINKS = {
    "8 GPUs, NVLink": (8, 450.0),
    "32 GPUs, 8 x 400 Gb/s a node": (32, 400.0),
    "32 GPUs, 400 Gb/s a node": (32, 50.0),
    "32 GPUs, 100 Gb/s a node": (32, 12.5),
}
SIZES = ("384x12", "768x12", "1024x23")
TYPES = {"float32": 4, "bfloat16": 2}
CROPS = 50 * 8  # local crops of a process
SMALL = dict(hidden_size=64, num_hidden_layers=12, num_attention_heads=4, min_hidden_size=32, min_num_hidden_layers=6,
             image_size=32, patch_size=8, drop_path_rate=0.0)  # fmt: skip
SMALL_HEADS = dict(num_prototypes=[64, 128], head_hidden_size=64, head_bottleneck_size=32)
DEPTH, LOCAL_TOKENS = 11, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=207.0, help="TFLOP/s of a step; 81 TFLOP in 0.392 s on an H100")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--block_ms", type=float, default=50.0)
    parser.add_argument("--send_ms", type=float, default=500.0)
    parser.add_argument("--steps", type=int, default=5, help="measured steps; the fastest counts")
    options = parser.parse_args()
    device = f"CPU, {options.processes} processes of 1 thread, gloo"
    print(f"{table_head(device)}; {options.block_ms:g} ms a block, {options.send_ms:g} ms for all gradients\n")
    computed, measured = compute(options.rate), measure(options)
    ratio = measured["layer by layer"]["waited"] / measured["all at the end"]["waited"]
    print(f"waited for averages, with gradients layer by layer over all at the end: {ratio:.3f}\n")
    how = {name: getattr(options, name) for name in ("rate", "processes", "block_ms", "send_ms", "steps")}
    found = {"ratio": ratio, "device": device, **versions(), **how, "measured": measured, "computed": computed}
    print(json.dumps(found))


def compute(tflops: float) -> list[dict]:
    """Print and return what a step of ViT-L sends and how long the step waits for it."""
    with torch.device("meta"):
        model = PoaForPreTraining(PoaConfig())
    layers = [sum(parameter.numel() for parameter in layer) for layer in model.student.layers()]
    count = sum(parameter.numel() for module in model.learning for parameter in module.parameters())
    passes = {size: backward_pass(model, size, tflops) for size in SIZES}
    seconds = ", ".join(f"{1000 * values[0]:.0f} ms ({size})" for size, values in passes.items())
    print(f"ViT-L: {count / 1e6:.1f} million trained parameters; the last pass's backward pass takes {seconds}")
    print(f"{'':30} {'type':>9} {'sent (GB)':>10} {'at the end (ms)':>16} {'waited for, meanwhile (ms)':>27}")
    rows = []
    for link, (processes, rate) in LINKS.items():
        for name, size in TYPES.items():
            # each process sends a ring's share (nccl-tests, PERFORMANCE.md)
            sent = size * 2 * (processes - 1) / processes
            per_value = sent / (rate * 1e9)
            waits = {of: waited(count, layers, per_value, *passes[of]) for of in SIZES}
            rows.append({"link": link, "type": name, "gigabytes": sent * count / 1e9, "at_the_end": count * per_value,
                         "meanwhile": waits})  # fmt: skip
            texts = " / ".join(f"{1000 * value:.1f}" for value in waits.values())
            print(f"{link:30} {name:>9} {sent * count / 1e9:>10.2f} {1000 * count * per_value:>16.1f} {texts:>27}")
    print()
    return rows


def backward_pass(model: PoaForPreTraining, size: str, tflops: float) -> tuple[float, set[int]]:
    """Return the seconds of the elastic student's backward pass over local crops, and the layers that take part."""
    config = model.config.backbone_config
    indices = model.student.slice_rules.layer_indices(dict(model.student.named_parameters()), config.space.full.depths)
    used = {indices[cut.source] for cut in model.student.sliced(size).plan.values() if cut.source in indices}
    return 2 * CROPS * count_forward_flops(config, SubNetwork.parse(size), 96) / (tflops * 1e12), used


def waited(count: int, layers: list[int], per_value: float, seconds: float, used: set[int]) -> float:
    """Return the seconds from the end of the backward pass to that of the last message.

    Args:
        count: Number of trained parameters. Those of the heads are complete from the start.
        layers: Numbers of parameters of the backbone's layers.
        per_value: Seconds that it takes to send one value.
        seconds: Seconds of the backward pass.
        used: The layers that take part in it, in equal shares.
    """
    now, free = 0.0, (count - sum(layers)) * per_value
    for layer in reversed(range(len(layers))):
        now += seconds / len(used) * (layer in used)
        free = max(now, free) + layers[layer] * per_value
    return free - now


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Print and return the seconds of a step in each way, and what it waits after its last gradient."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        results = pool.starmap(process, [(rank, port, options) for rank in range(options.processes)], chunksize=1)
    print(f"the last pass takes {DEPTH * options.block_ms / 1000:.2f} s longer, sending {options.send_ms / 1000:.2f} s")
    print(f"{'':15} {'step (s)':>9} {'waited (s)':>11}")
    measured = {}
    for way in WAYS:
        steps_of_all = zip(*(result[way] for result in results), strict=True)
        slowest = [tuple(map(max, zip(*of_step, strict=True))) for of_step in steps_of_all]
        step, waited = map(min, zip(*slowest, strict=True))
        measured[way] = {"step": step, "waited": waited}
        print(f"{way:15} {step:>9.3f} {waited:>11.3f}")
    return measured


# Whether gradients are sent, and whether they become complete layer by layer.
WAYS = {"not sent": (False, True), "all at the end": (True, False), "layer by layer": (True, True)}


def process(rank: int, port: str, options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of each measured step of one process, and what it waited, by way."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    dist.init_process_group("gloo", rank=rank, world_size=options.processes)
    seconds, gradients = {}, {}
    for way, (sent, by_layer) in WAYS.items():
        seconds[way], gradients[way] = steps(rank, options, sent, by_layer)
    pairs = zip(gradients["all at the end"], gradients["layer by layer"], strict=True)
    assert all(torch.equal(one, other) for one, other in pairs), "gradients are others when they are sent meanwhile"
    dist.destroy_process_group()
    return seconds


def steps(
    rank: int, options: argparse.Namespace, sent: bool, by_layer: bool
) -> tuple[list[tuple[float, float]], list[torch.Tensor]]:
    """Return the seconds of steps made in one way and what they waited, and the gradients of the last one."""
    torch.manual_seed(0)
    model = PoaForPreTraining(PoaConfig(backbone_config=PoaViTConfig(**SMALL), **SMALL_HEADS)).train()
    size = SubNetwork(48, DEPTH)
    delay_blocks(model, size, options.block_ms / 1000)
    if not by_layer:
        model.student.layers = list  # no layer is left to the backward pass of the loss
    count = sum(parameter.numel() for module in model.learning for parameter in module.parameters())
    link = Link(options.send_ms / 1000 / count if sent else 0.0)
    called = DistributedDataParallel(model, bucket_cap_mb=4 * count / 2**20 / 24, gradient_as_bucket_view=True)
    called.register_comm_hook(None, link.average)
    torch.manual_seed(rank)
    crops, local, masks = torch.randn(4, 3, 32, 32), torch.randn(8, 3, 16, 16), torch.zeros(4, 16, dtype=torch.bool)
    masks[:, ::3] = True
    seconds = []
    for _ in range(2 + options.steps):  # DDP makes its buckets in the first one
        model.zero_grad()
        dist.barrier()
        started = time.perf_counter()
        called(crops, local, masks, size, 0.07).loss.backward()
        ended = time.perf_counter()
        seconds.append((ended - started, ended - link.last_given))
    link.sender.shutdown()
    return seconds[2:], [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def delay_blocks(model: PoaForPreTraining, size: SubNetwork, seconds: float) -> None:
    """Let the backward pass of each of an elastic student's blocks take longer in its pass over local crops."""

    def delayed(block: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if output.requires_grad and output.shape[1] == LOCAL_TOKENS:
            output.register_hook(lambda gradient: time.sleep(seconds))

    for block in model.student.sliced(size).plain.encoder.layer:
        block.register_forward_hook(delayed)


class Link:
    """Carries one bucket after the other, each for as long as it is large."""

    def __init__(self, seconds_per_value: float):
        self.seconds_per_value, self.last_given = seconds_per_value, 0.0
        self.sender = ThreadPoolExecutor(1)

    # torch compares the annotations of what it is given with its own types
    def average(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        averaged: torch.futures.Future[torch.Tensor] = torch.futures.Future()

        def send(values: torch.Tensor) -> None:
            time.sleep(len(values) * self.seconds_per_value)
            dist.all_reduce(values)
            averaged.set_result(values.div_(dist.get_world_size()))

        self.last_given = time.perf_counter()
        self.sender.submit(send, bucket.buffer())
        return averaged


if __name__ == "__main__":
    main()
