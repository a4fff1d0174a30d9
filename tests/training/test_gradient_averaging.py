"""Gradients are averaged over processes while the backward pass goes on, and are those of one process."""

import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from poa_hf import PoaForPreTraining, PoaTrainingArguments, SubNetwork
from poa_hf.training.engines import accumulating, new_accelerator, prepare

from ..conftest import random_batch, tiny_backbone, tiny_config
from .processes import in_processes, launch_environment

slow = pytest.mark.slow
FSDP2 = launch_environment("fsdp2.yaml")
IMAGES = 8
SIZES = [SubNetwork(16, 2), SubNetwork(32, 3), SubNetwork(24, 1), SubNetwork(32, 2)]
# Twice the same, as DDP makes other buckets after its first step.
CASES = {
    "first": {},
    "second": {},
    "no masks": {"predict_masked_patches": False},
    "frozen": {"freeze_backbone": True},
    "accumulated": {"parts": 3},
    "no local crops": {"num_local": 0},
    "several elastic students": {"sub_network": (SubNetwork(16, 1), SubNetwork(24, 2))},
    "no elastic student": {"sub_network": ()},
}


def new_model(**fields) -> PoaForPreTraining:
    torch.manual_seed(0)
    return PoaForPreTraining(tiny_config(tiny_backbone(), koleo_weight=0.0, **fields)).train()


def share(seed: int, num_local: int, rank: int, processes: int) -> dict[str, torch.Tensor]:
    """The images of one process; masks hide equally many patches of each process's images."""
    batch = random_batch(IMAGES, num_local, seed)
    batch["masks"] = (torch.arange(16) % 3 == 0).expand(2 * IMAGES, 16)
    return {
        name: values.unflatten(0, (-1, IMAGES)).chunk(processes, dim=1)[rank].flatten(0, 1) if len(values) else values
        for name, values in batch.items()
    }


def gradients_of(model: PoaForPreTraining) -> dict[str, torch.Tensor]:
    whole = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gradient = parameter.grad
            gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            whole[name] = gradient.clone()
    return whole


def compute(folder: str, options: dict, own_sizes: bool = False) -> None:
    """Save the gradients of all cases by an engine; with sizes of their own, also averages that are made at the end."""
    args = PoaTrainingArguments(output_dir=folder, **options)
    model, alone = new_model(), new_model()
    accelerator = new_accelerator(args)
    rank, processes = accelerator.process_index, accelerator.num_processes
    wrapped, _ = prepare(accelerator, model, args)
    size = SIZES[rank if own_sizes else 0]
    found, expected = {}, {}
    for case, fields in CASES.items():
        fields = {"parts": 1, "num_local": 2, **fields}
        parts, num_local, sizes = fields.pop("parts"), fields.pop("num_local"), fields.pop("sub_network", size)
        for part in range(parts):
            batch = share(part, num_local, rank, processes)

            def backward(called, batch=batch, parts=parts, fields=fields, sizes=sizes):
                (called(**batch, sub_network=sizes, teacher_temperature=0.05, **fields).loss / parts).backward()

            if part + 1 < parts:
                with accumulating(accelerator, wrapped):
                    backward(wrapped)
            else:
                backward(wrapped)
            if own_sizes:
                backward(alone)
        found[case] = gradients_of(model)
        if own_sizes:
            expected[case] = gradients_of(alone)
            for gradient in expected[case].values():
                dist.all_reduce(gradient)
                gradient /= processes
        model.zero_grad()
        alone.zero_grad()
    torch.save((found, expected), Path(folder) / f"gradients-{rank}.pt")


def assert_same(found: dict, expected: dict, tolerance: float) -> None:
    assert found.keys() == expected.keys() == CASES.keys()
    for case in CASES:
        for name, gradient in expected[case].items():
            if "k_proj.bias" in name:
                continue  # no attention depends on it: its gradient is nothing but rounding
            error = (found[case][name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-6)
            assert error < tolerance, (case, name, float(error))


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("one")
    in_processes(1, compute, str(folder), {})
    return torch.load(folder / "gradients-0.pt")[0]


@pytest.mark.parametrize(
    ("processes", "environment", "options", "tolerance"),
    [
        (2, None, {}, 5e-6),
        pytest.param(4, None, {}, 5e-6, marks=slow),
        pytest.param(2, FSDP2, {}, 5e-6, marks=slow),
        pytest.param(2, None, {"reduce_dtype": "bfloat16"}, 2e-2, marks=slow),
        pytest.param(2, FSDP2, {"reduce_dtype": "bfloat16"}, 2e-2, marks=slow),
    ],
    ids=["two", "four", "fsdp2", "two-bfloat16", "fsdp2-bfloat16"],
)
def test_gradients_are_those_of_one_process(of_one_process, processes, environment, options, tolerance, tmp_path):
    in_processes(processes, compute, str(tmp_path), options, environment=environment)
    for rank in range(processes):
        found, _ = torch.load(tmp_path / f"gradients-{rank}.pt")
        assert_same(found, of_one_process, tolerance)
    gradients = [item for item in of_one_process["first"].items() if "k_proj.bias" not in item[0] and item[1].any()]
    errors = [
        float((found["first"][name] - gradient).abs().max() / gradient.abs().max()) for name, gradient in gradients
    ]
    assert (max(errors) > 1e-4) == ("reduce_dtype" in options), "what was averaged was not rounded as asked for"


@slow
@pytest.mark.parametrize("environment", [None, FSDP2], ids=["ddp", "fsdp2"])
def test_gradients_of_own_sizes_are_their_mean(environment, tmp_path):
    in_processes(4, compute, str(tmp_path), {}, True, environment=environment)
    for rank in range(4):
        assert_same(*torch.load(tmp_path / f"gradients-{rank}.pt"), 5e-6)


def overlap(folder: str, first_sizes: list[SubNetwork]) -> None:
    """Steps in which the first block's gradient waits for the first averages. Save what happened when.

    DDP sends everything at once in its first step, and then makes buckets in the order in which gradients came in it.
    """
    dist.init_process_group("gloo")
    model = new_model()
    wrapped = DistributedDataParallel(model, bucket_cap_mb=0.01, gradient_as_bucket_view=True)
    names = {parameter: name for name, parameter in model.named_parameters()}
    events: list[str] = []
    averaged = threading.Event()

    def hook(_: None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        events.append("bucket of " + ", ".join(names[parameter] for parameter in bucket.parameters()))
        averages = allreduce_hook(None, bucket)

        def done(future: torch.futures.Future) -> torch.Tensor:
            averaged.set()
            return future.value()

        return averages.then(done)

    def wait(parameter: torch.Tensor) -> None:
        assert step == 0 or averaged.wait(30), f"nothing was averaged before the gradients of the first block: {events}"
        events.append("first block")

    wrapped.register_comm_hook(None, hook)
    model.student.encoder.layer[0].mlp.fc2.weight.register_hook(wait)
    for step in range(3):
        averaged.clear()
        size = first_sizes[dist.get_rank()] if step == 0 else SubNetwork(32, 3)
        batch = share(step, 2, dist.get_rank(), 2)
        wrapped(**batch, sub_network=size, teacher_temperature=0.05).loss.backward()
        model.zero_grad()
        events.append("step")
    (Path(folder) / f"events-{dist.get_rank()}.txt").write_text("\n".join(events))


def test_gradients_are_averaged_while_others_are_computed(tmp_path):
    in_processes(2, overlap, str(tmp_path), [SubNetwork(16, 1), SubNetwork(32, 2)])
    for rank in range(2):
        *steps, end = (tmp_path / f"events-{rank}.txt").read_text().split("step")
        assert len(steps) == 3 and not end
        for step in steps[1:]:
            buckets = step.split("bucket of ")[1:]
            (waiting,) = [number for number, text in enumerate(buckets) if "first block" in text]
            before = " ".join(buckets[: waiting + 1])
            for name in ("student_head.0.prototypes", "student_head.1.mlp.0", "layer.2.mlp.fc1", "layer.1.mlp.fc1"):
                assert name in before, f"{name} was not being averaged when the first block's gradients were computed"
            assert "student.embeddings" not in before
