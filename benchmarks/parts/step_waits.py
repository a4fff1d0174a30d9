"""How often a training step makes the host wait for the device, by the profiler, for step_parts.py.

Run as a program, `python -m parts.step_waits` in benchmarks/, it lists the waits with their lines of code.

On a GPU these are the profiler's synchronising calls of CUDA during `PoaTrainer`'s step; one cudaEventSynchronize is
for the flag of the step before, behind which this one is queued already.

Without one, the meta device stands in for it: model and crops are moved there as they would be to a GPU, whereas what
is made on the host (masks, parameters of the augmentation) stays a CPU tensor. So the device of an operation's tensors
says whether it would wait: reading a value, `nonzero` and boolean indexing of a device's tensors, copies that are not
`non_blocking`, tensors of Python numbers made there. Each is a range of its own in the profile, named by operation and
line of code; what else needs values of a device raises there.
"""

import importlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils._python_dispatch import TorchDispatchMode

from poa_hf import PoaConfig, PoaForPreTraining, PoaTrainer, PoaTrainingArguments, PoaViTConfig
from poa_hf.data.textures import TextureDataset
from poa_hf.training.monitoring import LogWindow
from poa_hf.training.optimization import build_optimizer

from . import fakes  # noqa: F401 (registers operations)
from .machine import find_device

WAIT = "waits: "
CUDA_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
aten = torch.ops.aten
SETTING = (aten.index_put.default, aten.index_put_.default)


def main() -> None:
    waits = step_waits(find_device())
    print("\n".join(f"{count} x {place}" for place, count in waits.items()) or "nothing waits")
    print(json.dumps(waits))


def step_waits(device: torch.device) -> dict[str, int]:
    """Count the waits in a step that writes no line of the log, by operation.

    The model is a small ViT with all losses, stochastic depth, two heads and eight local crops.
    """
    config = PoaConfig(
        backbone_config=PoaViTConfig(
            hidden_size=64, num_hidden_layers=2, num_attention_heads=4, min_hidden_size=32, min_num_hidden_layers=1,
            image_size=32, drop_path_rate=0.2,
        ), num_prototypes=[64, 128], head_hidden_size=64, head_bottleneck_size=32,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        args = PoaTrainingArguments(
            output_dir=folder, max_steps=99, logging_steps=99, per_device_train_batch_size=4, global_crop_size=32,
            local_crop_size=16, dataloader_num_workers=0, masked_prediction_start_step=0, bf16=device.type == "cuda",
        )  # fmt: skip
        trainer = PoaTrainer(PoaForPreTraining(config), args, TextureDataset(size=36))
        return on_cuda(trainer) if device.type == "cuda" else on_meta(trainer)


def on_cuda(trainer: PoaTrainer) -> dict[str, int]:
    trainer.model.train()
    batches, window, found = iter(trainer.loader), LogWindow(), {}
    for step in range(4):  # the first steps set libraries up
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) if step == 3 else nullcontext() as run:
            with record_function("step"):
                trainer.optimizer_step(batches, step, window)
    events = trace(run)
    step = next(event for event in events if event["name"] == "step" and event["cat"] == "user_annotation")
    for event in events:
        # not what the profiler itself waits for at its end
        if event["name"] in CUDA_WAITS and step["ts"] <= event["ts"] <= step["ts"] + step["dur"]:
            found[event["name"]] = found.get(event["name"], 0) + 1
    return found


def on_meta(trainer: PoaTrainer) -> dict[str, int]:
    meta = torch.device("meta")
    trainer.model.to(meta).train()
    trainer.optimizer_step.optimizer = build_optimizer(trainer.model, trainer.args)
    batches, window = iter([next(iter(trainer.loader))]), LogWindow()  # made before, not profiled
    with ExitStack() as stack:
        stack.enter_context(patch.object(type(trainer.accelerator), "device", meta))
        if hasattr(trainer, "nonfinite"):  # reads the flag of the step before from an event, which only GPUs have
            stack.enter_context(patch.object(trainer.nonfinite, "add"))
        stand_in_for_a_gpu(stack, lambda: waits("a tensor of Python numbers"))
        run = stack.enter_context(profile(activities=[ProfilerActivity.CPU]))
        with Waits():
            trainer.optimizer_step(batches, 3, window)
    return dict(Counter(e["name"].removeprefix(WAIT) for e in trace(run) if e["name"].startswith(WAIT)))


def trace(run: profile) -> list[dict]:
    """Return the events of a profile in the format of Chrome's tracing; the profiler's own summary takes seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        run.export_chrome_trace(str(path))
        return json.loads(path.read_text())["traceEvents"]


class Waits(TorchDispatchMode):
    """Marks in the profile what would wait for a GPU, and continues with values that could have been read from it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is aten._fused_adamw_.default:
            return None  # exists for real devices only
        if function is aten._local_scalar_dense.default and args[0].is_meta:
            waits("a value is read")
            return torch.ones((), dtype=args[0].dtype).item()
        if function is aten.nonzero.default and args[0].is_meta:
            waits("nonzero")
            return _places(args[0])
        if function is aten.index.Tensor and any(_is_device_mask(index) for index in args[1]):
            waits("a boolean index")
            split = [_places(index).unbind(1) if _is_device_mask(index) else [index] for index in args[1]]
            return function(args[0], [index for indices in split for index in indices])
        if function in SETTING and any(_is_device_mask(index) for index in args[1]) and args[2].numel() > 1:
            waits("a boolean index")
        if function is aten._to_copy.default and (kwargs.get("device") or args[0].device) != args[0].device:
            if not kwargs.get("non_blocking"):
                waits("a copy")
            if args[0].is_meta:
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if function is aten.copy_.default and args[0].is_meta != args[1].is_meta:
            if not (args[2] if len(args) > 2 else kwargs.get("non_blocking")):
                waits("a copy")
            return args[0]
        return function(*args, **kwargs)


def _is_device_mask(index) -> bool:
    return index is not None and index.is_meta and index.dtype == torch.bool


def _places(mask: torch.Tensor) -> torch.Tensor:
    """Stand in for the indices of the true entries, as if half of all were true."""
    return torch.empty(max(1, mask.numel() // 2), mask.ndim, dtype=torch.long, device=mask.device)


def waits(what: str) -> None:
    frame = sys._getframe(1)
    while frame and "poa_hf" not in frame.f_code.co_filename.replace("\\", "/").split("/"):
        frame = frame.f_back
    place = "elsewhere"
    if frame:
        place = f"{frame.f_code.co_filename.rpartition('poa_hf')[2].strip('/')}:{frame.f_lineno}"
    with record_function(f"{WAIT}{what} ({place})"):
        pass


def stand_in_for_a_gpu(stack: ExitStack, from_numbers: Callable[[], None]) -> None:
    """Lets the meta device train: with autocast, fused AdamW and kornia's copies as on GPUs. `from_numbers` is called
    where a tensor there is made of Python numbers, by a copy that waits."""
    with torch.device("meta"):  # which functions make tensors is looked up at the first use and kept
        torch.empty(0)
    autocast, is_autocast_enabled = torch.autocast, torch.is_autocast_enabled

    def replace(where, name, value):
        stack.enter_context(patch.object(where, name, value))

    replace(torch, "autocast", lambda device, *a, **k: nullcontext() if device == "meta" else autocast(device, *a, **k))
    replace(
        torch,
        "is_autocast_enabled",
        lambda device=None: device != "meta" and is_autocast_enabled(device or "cpu"),
    )
    replace(importlib.import_module("torch.optim.adam"), "_device_dtype_check_for_fused", lambda parameter: None)
    replace(
        importlib.import_module("kornia.filters.gaussian"),
        "_to_device_nonblocking",
        lambda tensor, device: tensor.to(device, non_blocking=True),
    )
    for module, name in ((torch, "tensor"), (torch, "as_tensor"), (torch.Tensor, "new_tensor")):
        original = getattr(module, name)

        def marking(*args, original=original, **kwargs):
            result = original(*args, **kwargs)
            if result.is_meta and not isinstance(args[-1] if args else None, torch.Tensor):
                from_numbers()
            return result

        replace(module, name, marking)


if __name__ == "__main__":
    main()
