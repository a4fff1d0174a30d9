"""What a training step costs, part by part, beside the same passes of plain stock models.

    python benchmarks/step_time.py                                   # a CPU scale
    python benchmarks/step_time.py --preset vit_large --bf16         # published sizes; for a GPU

Each of our parts and its plain counterpart are timed in turn, so that a machine that slows down slows both; a ratio is
the median over the pairs. The plain step is the sum of: the stock teacher's forward, the stock full model's and the
stock sub-network's forward and backward, our heads and losses on given features, AdamW and the moving average.
Utilisation is the FLOPs of the matrix products in a step (recomputation not counted) over its time, as a share of the
rate of one large matrix product, measured in the same run.
The last line is one JSON object.
"""

import argparse
import copy
import json
import platform
import statistics
import threading
import time
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import psutil
import torch
from parts.plain_losses import Tokens
from parts.plain_losses import ours as heads_and_losses
from torch.utils.flop_counter import FlopCounterMode

from poa_hf import PoaConfig, PoaForPreTraining, PoaTrainingArguments, PoaViTConfig
from poa_hf.data import PretrainingLoader, augment
from poa_hf.data.textures import TextureDataset
from poa_hf.objective import objective
from poa_hf.objective.early_gradients import GradientSums
from poa_hf.objective.head_losses import TeacherTargets
from poa_hf.objective.objective import Branch
from poa_hf.training.optimization import build_optimizer, hyperparameters_at, set_hyperparameters

PRESETS = {
    "cpu": dict(
        backbone=dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=112),
        heads=dict(num_prototypes=[1024, 2048], head_hidden_size=512),
        batch=16, crops=dict(global_crop_size=112, local_crop_size=48, num_local_crops=4), size="192x6",
    ),
    "tiny": dict(
        backbone=dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, min_hidden_size=32,
                      min_num_hidden_layers=1, image_size=32),
        heads=dict(num_prototypes=[64, 128], head_hidden_size=64, head_bottleneck_size=32),
        batch=4, crops=dict(global_crop_size=32, local_crop_size=16, num_local_crops=8), size="32x1",
    ),
    "vit_large": dict(
        backbone={}, heads={}, batch=50, crops={}, size="small",
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--size", help="sub-network of the elastic pass")
    parser.add_argument("--batch", type=int, help="images")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--gradient_checkpointing", action="store_true")
    parser.add_argument("--torch_compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    preset = PRESETS[options.preset]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = PoaConfig(backbone_config=PoaViTConfig(drop_path_rate=0.0, **preset["backbone"]), **preset["heads"])
    model = PoaForPreTraining(config).to(device).train()
    size = config.backbone_config.space.resolve(options.size or preset["size"])
    args = PoaTrainingArguments(per_device_train_batch_size=options.batch or preset["batch"], **preset["crops"])
    step = Step(model, size, args, device, options.bf16)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        step.ours()
    flops, rate = counter.get_total_flops(), matmul_rate(device, torch.bfloat16 if options.bf16 else torch.float32)
    if options.gradient_checkpointing:
        model.student.activation_checkpointing_enable()
    if options.torch_compile:
        model.compile_full_size()
    for _ in range(3):
        step.ours(), step.plain()
    ours, plain = [], []
    with PeakMemory(device) as peak:
        step.ours()
    for _ in range(options.repeats):
        ours.append(step.ours())
        plain.append(step.plain())
    report(step, ours, plain, peak.bytes, flops, rate, options)


class Step:
    """One step in parts, ours and plain; each call gives seconds per part."""

    def __init__(self, model, size, args, device, bf16):
        self.model, self.size, self.args, self.device, self.bf16 = model, size, args, device, bf16
        grid = (args.global_crop_size // model.config.backbone_config.patch_grid,) * 2
        dataset = TextureDataset(size=args.global_crop_size * 8 // 7)
        self.batches = iter(PretrainingLoader(dataset, args, args.per_device_train_batch_size, grid))
        self.values = hyperparameters_at(30_000, args, 1024)
        self.optimizer = build_optimizer(model, args)
        set_hyperparameters(self.optimizer, self.values)
        self.teacher = model.teacher.extract()
        self.intact = model.student.extract().train()
        self.elastic = model.student.extract(size).train()
        self.heads = copy.deepcopy(model)
        self.crops = self.load()

    def load(self):
        batch = next(self.batches)
        crops = [
            augment(batch[f"{kind}_crops"].to(self.device), batch[f"{kind}_augmentation"], self.args.image_mean,
                    self.args.image_std) for kind in ("global", "local")
        ]  # fmt: skip
        masked_patches = batch["masks"].flatten().nonzero().squeeze(1).to(self.device)
        return *crops, batch["masks"].to(self.device), masked_patches

    def timed(self, function, seconds, part):
        self.synchronize()
        start = time.perf_counter()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            result = function()
        self.synchronize()
        seconds[part] = seconds.get(part, 0) + time.perf_counter() - start
        return result

    def synchronize(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def ours(self) -> dict[str, float]:
        """The step as the trainer runs it."""
        seconds = {}
        global_crops, local_crops, masks, masked_patches = self.timed(self.load, seconds, "data")
        start = time.perf_counter()
        with self.timed_parts(seconds), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.model(global_crops, local_crops, masks, self.size, 0.07, masked_patches=masked_patches).loss
        self.timed(loss.backward, seconds, "optimiser and teacher update")  # only hands the gradient on
        self.timed(lambda: self.optimise(self.model, self.optimizer), seconds, "optimiser and teacher update")
        seconds["step"] = time.perf_counter() - start
        return seconds

    @contextmanager
    def timed_parts(self, seconds):
        """Within, the parts of the model's forward pass, which has the students' backward passes in it, are timed."""
        model, branches, branch = self.model, iter(["teacher", "intact", "elastic"]), [""]

        def timed(function, part=None):
            def call(*args, **kwargs):
                return self.timed(lambda: function(*args, **kwargs), seconds, part or branch[0])

            return call

        def global_tokens(*args, **kwargs):
            branch[0] = next(branches)
            return timed(branch_global_tokens)(*args, **kwargs)

        @contextmanager
        def timed_end(context, part=None):
            """Of a context, what happens when it is left: the backward pass of what it was entered with."""
            with ExitStack() as stack:
                value = stack.enter_context(context)
                yield value
                del value
                timed(stack.close, part)()

        branch_global_tokens, cut, prototypes = Branch.global_tokens, GradientSums.cut, objective.student_prototypes
        heads = "heads and losses"
        replaced = [
            (Branch, "global_tokens", global_tokens),
            (Branch, "local_tokens", timed(Branch.local_tokens)),
            (model.student, "sliced", timed(model.student.sliced, "elastic")),
            (GradientSums, "cut", lambda *args: timed_end(cut(*args))),
            (GradientSums, "on_leaves", timed(GradientSums.on_leaves, "elastic")),
            (GradientSums, "totals", timed(GradientSums.totals, "elastic")),
            (TeacherTargets, "__init__", timed(TeacherTargets.__init__, heads)),
            (objective, "head_losses", timed(objective.head_losses, heads)),
            (objective, "student_prototypes", lambda *args: timed_end(prototypes(*args), heads)),
        ]
        with ExitStack() as stack:
            for owner, name, function in replaced:
                stack.enter_context(patch.object(owner, name, function))
            yield

    def plain(self) -> dict[str, float]:
        """The same passes by stock models of those sizes."""
        seconds, (global_crops, local_crops, masks, masked_patches) = {}, self.crops

        def run(backbone, with_local=True):
            output = backbone(global_crops, bool_masked_pos=masks if with_local else None)
            local = backbone(local_crops).pooler_output if with_local else output.pooler_output[:0]
            return Tokens(output.pooler_output, local, output.last_hidden_state[:, 1:][masks])

        with torch.no_grad():
            teacher = self.timed(lambda: run(self.teacher, with_local=False), seconds, "teacher")
        tokens = [
            self.timed(lambda: run(self.intact), seconds, "intact"),
            self.timed(lambda: run(self.elastic), seconds, "elastic"),
        ]
        leaves = [leaf_tokens(branch) for branch in tokens]
        self.timed(
            lambda: self.heads_and_losses(self.heads, teacher, *leaves, masks, masked_patches),
            seconds,
            "heads and losses",
        )
        self.timed(lambda: backward(tokens[1], leaves[1]), seconds, "elastic")
        self.timed(lambda: backward(tokens[0], leaves[0]), seconds, "intact")
        for module in (self.intact, self.elastic, self.heads):
            module.zero_grad()
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        self.timed(lambda: self.optimise(self.model, self.optimizer), seconds, "optimiser and teacher update")
        seconds["step"] = sum(seconds.values())
        return seconds

    def heads_and_losses(self, model, teacher, intact, elastic, masks, masked_patches):
        patch_weights = (1 / masks.sum(dim=1).clamp(min=1))[masked_patches // masks.shape[1]]
        heads_and_losses(model, teacher, intact, elastic, patch_weights, 0.07).backward()

    def optimise(self, model, optimizer):
        for module in (model.student, model.student_head):
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.5)
        optimizer.step()
        model.update_teacher(self.values.teacher_momentum)
        optimizer.zero_grad()


def leaf_tokens(tokens: Tokens) -> Tokens:
    return Tokens(*(tensor.detach().requires_grad_() for tensor in tokens))


def backward(tokens: Tokens, leaves: Tokens) -> None:
    torch.autograd.backward(
        [tokens.global_, tokens.local, tokens.masked], [leaves.global_.grad, leaves.local.grad, leaves.masked.grad]
    )


class PeakMemory:
    """Peak bytes while the block runs: allocated on a GPU, resident on a CPU (sampled every millisecond)."""

    def __init__(self, device):
        self.device, self.bytes, self._done = device, 0, threading.Event()

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self):
        process = psutil.Process()
        while not self._done.wait(0.001):
            self.bytes = max(self.bytes, process.memory_info().rss)

    def __exit__(self, *exception):
        self._done.set()
        self._thread.join()
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated()


def matmul_rate(device, dtype) -> float:
    """FLOPs per second of one large matrix product, the median of several."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(7):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds[2:])


def attention_flops(query, key, value, *args, **kwargs) -> int:
    return 2 * query[:-1].numel() * key[-2] * (query[-1] + value[-1])


# what PyTorch's counter does not know; the backward pass has five matrix products to the forward pass's two
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda gradient, *shapes, **kwargs: (
        5 * attention_flops(*shapes[:3]) // 2
    ),
}


def report(step, ours, plain, peak, flops, rate, options) -> None:
    device = torch.cuda.get_device_name() if step.device.type == "cuda" else f"CPU, {options.threads} threads"
    print(
        f"{device}; torch {torch.__version__}, Python {platform.python_version()}; {options.repeats} repeats, medians"
    )
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
                "torch": torch.__version__,
                "python": platform.python_version(),
                "size": str(step.size),
                "parts": figures,
            }
        )
    )


if __name__ == "__main__":
    main()
