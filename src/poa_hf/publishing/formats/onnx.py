"""An extracted model as ONNX, checked against the PyTorch model it was made from."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitImageProcessorPil, PreTrainedModel

INPUT, OUTPUTS = "pixel_values", ("last_hidden_state", "pooler_output")  # the names that Optimum uses
# The opset that the exporter's operators are written for; it converts higher ones from it. In ONNX Runtime since 1.14.
_OPSET = 18
_TOLERANCE = 1e-3  # relative to the largest output: other kernels round differently, a wrong graph is off by far more


def check_onnx() -> None:
    """Check that the packages that write and check ONNX are installed.

    Raises:
        ValueError: With the command that installs them, if one is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"ONNX needs a package that is not installed ({error.name}): pip install 'poa_hf[onnx]'."
        ) from error


def as_onnx(
    model: PreTrainedModel, processor: BitImageProcessorPil, batch_size: int | None = None
) -> Callable[[Path], None]:
    """Export a model to ONNX, and return the function that writes `model.onnx` into a folder and checks it there.

    The graph takes `pixel_values` (N, 3, H, W) as `processor` makes them and returns `last_hidden_state` and
    `pooler_output`. H and W are fixed, because Swin's windows and ViT's position embeddings are made for them. Weights
    beyond 2 GB, which one ONNX file cannot hold, go to `model.onnx.data`.

    Args:
        model: The extracted model.
        processor: Its image processor, which says H and W.
        batch_size: N; by default batches of any size are taken.

    Raises:
        ValueError: If packages are missing or `batch_size` is below 1. The returned function raises it if ONNX
            Runtime's outputs differ from PyTorch's.
    """
    check_onnx()
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"onnx_batch is {batch_size}: give at least 1, or leave it out for batches of any size.")
    features = _Features(model).eval()
    shape = (model.config.num_channels, processor.crop_size["height"], processor.crop_size["width"])
    generator = torch.Generator().manual_seed(0)
    # the first batch is the exporter's example: with one image it would take the batch size for a constant
    counts = [batch_size] if batch_size else [2, 1, 3]
    batches = [torch.randn(count, *shape, generator=generator) for count in counts]  # each (N, 3, H, W)
    with torch.no_grad(), _without_exporter_messages():
        program = torch.onnx.export(
            features,
            (batches[0],),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=None if batch_size else {INPUT: {0: torch.export.Dim("batch_size")}},
            opset_version=_OPSET,
            verbose=False,
        )
        expected = [features(batch) for batch in batches]
    if program is None:  # it is None only for the older exporter
        raise ValueError("torch.onnx.export returned no program: use another format.")

    _remove_origins(program)

    def save(folder: Path) -> None:
        file = folder / "model.onnx"
        program.save(file)
        _check(file, batches, expected)

    return save


class _Features(nn.Module):
    """The two outputs of a model as a tuple."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values)
        return output.last_hidden_state, output.pooler_output


def _remove_origins(program: torch.onnx.ONNXProgram) -> None:
    """Remove where each node came from: the exporter notes the calls, with the paths of this machine's files."""
    graphs: list[Any] = [program.model.graph, *program.model.functions.values()]
    for graph in graphs:
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in (*node.inputs, *node.outputs):
                if value is not None:
                    value.metadata_props.clear()


def _check(file: Path, batches: list[Tensor], expected: list[tuple[Tensor, Tensor]]) -> None:
    """Compare the outputs of ONNX Runtime with the expected ones.

    Raises:
        ValueError: If they differ by more than rounding.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch, outputs in zip(batches, expected, strict=True):
        arrays = session.run(list(OUTPUTS), {INPUT: batch.numpy()})
        for name, ours, theirs in zip(OUTPUTS, outputs, map(torch.from_numpy, arrays), strict=True):
            difference = (ours - theirs).abs().max().item()
            if not difference <= _TOLERANCE * ours.abs().max().item():  # a NaN is a difference too
                raise ValueError(
                    f"ONNX Runtime's {name} differs from PyTorch's by {difference:.1g} for {len(batch)} images, so "
                    "nothing was written: use another format."
                )


@contextmanager
def _without_exporter_messages() -> Iterator[None]:
    """Silence the exporter, which warns about optional packages and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
