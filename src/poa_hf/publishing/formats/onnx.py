"""An extracted model as ONNX, checked against the PyTorch model it was made from."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitImageProcessorPil, PreTrainedModel

from ...formatting import one_line

INPUT, OUTPUTS = "pixel_values", ("last_hidden_state", "pooler_output")  # the names that Optimum uses
# The opset that the exporter's operators are written for; it converts higher ones from it. In ONNX Runtime since 1.14.
_OPSET = 18
# Relative to the largest output: other kernels round differently, a wrong graph is off by far more.
_TOLERANCES = {"float32": 1e-3, "float16": 2e-2}


@dataclass(frozen=True)
class OnnxOptions:
    """How a model is written as ONNX.

    Args:
        onnx_batch: The number of images in each batch; by default batches of any size are taken.
        onnx_opset: The version of ONNX's operators, at least 18, which is the default.
        onnx_dtype: The type of weights and computation, `float32` (the default) or `float16`. Inputs and outputs are
            float32 in both, so that the same code uses either.
    """

    onnx_batch: int | None = None
    onnx_opset: int | None = None
    onnx_dtype: str | None = None

    @property
    def given(self) -> list[str]:
        """The names of the options that are not left out."""
        return [name for name, value in vars(self).items() if value is not None]

    def check(self) -> None:
        """Check the values, before anything is computed.

        Raises:
            ValueError: If `onnx_batch` is below 1, the opset is not one that can be written, or the type is another.
        """
        import onnx

        newest = onnx.defs.onnx_opset_version()
        if self.onnx_batch is not None and self.onnx_batch < 1:
            raise ValueError(
                f"onnx_batch is {self.onnx_batch}: give at least 1, or leave it out for batches of any size."
            )
        if self.onnx_opset is not None and not _OPSET <= self.onnx_opset <= newest:
            raise ValueError(f"onnx_opset is {self.onnx_opset}: give {_OPSET} to {newest}, those that can be written.")
        if self.onnx_dtype is not None and self.onnx_dtype not in _TOLERANCES:
            raise ValueError(f"onnx_dtype is {self.onnx_dtype!r}: give {' or '.join(_TOLERANCES)}.")


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
    model: PreTrainedModel, processor: BitImageProcessorPil, options: OnnxOptions | None = None
) -> Callable[[Path], None]:
    """Export a model to ONNX, and return the function that writes `model.onnx` into a folder and checks it there.

    The graph takes `pixel_values` (N, 3, H, W) as `processor` makes them and returns `last_hidden_state` and
    `pooler_output`. H and W are fixed, because Swin's windows and ViT's position embeddings are made for them. Weights
    beyond 2 GB, which one ONNX file cannot hold, go to `model.onnx.data`.

    Args:
        model: The extracted model.
        processor: Its image processor, which says H and W.
        options: N, the opset and the type of the weights; by default any, 18 and float32.

    Raises:
        ValueError: If packages are missing or an option cannot be used. The returned function raises it if ONNX Runtime
            cannot run the file, or its outputs differ from those of PyTorch in float32.
    """
    options = options or OnnxOptions()
    check_onnx()
    options.check()
    batch_size, opset = options.onnx_batch, options.onnx_opset or _OPSET
    features = _Features(model).eval()
    written = features if options.onnx_dtype != "float16" else _HalfFeatures(features).eval()
    shape = (model.config.num_channels, processor.crop_size["height"], processor.crop_size["width"])
    generator = torch.Generator().manual_seed(0)
    # the first batch is the exporter's example: with one image it would take the batch size for a constant
    counts = [batch_size] if batch_size else [2, 1, 3]
    batches = [torch.randn(count, *shape, generator=generator) for count in counts]  # each (N, 3, H, W)
    with torch.no_grad(), _without_exporter_messages():
        program = torch.onnx.export(
            written,
            (batches[0],),
            dynamo=True,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=None if batch_size else {INPUT: {0: torch.export.Dim("batch_size")}},
            opset_version=opset,
            verbose=False,
        )
        expected = [features(batch) for batch in batches]
    if program is None:  # it is None only for the older exporter
        raise ValueError("torch.onnx.export returned no program: use another format.")

    if program.model.opset_imports[""] != opset:  # a conversion that fails leaves the model as it is
        raise ValueError(f"The model could not be written with opset {opset}: leave onnx_opset out for {_OPSET}.")
    _remove_origins(program)

    def save(folder: Path) -> None:
        file = folder / "model.onnx"
        program.save(file)
        _check(file, batches, expected, _TOLERANCES[options.onnx_dtype or "float32"])

    return save


class _Features(nn.Module):
    """The two outputs of a model as a tuple."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values)
        return output.last_hidden_state, output.pooler_output


class _HalfFeatures(nn.Module):
    """The outputs of a model in float16, with float32 inputs and outputs."""

    def __init__(self, features: _Features):
        super().__init__()
        self.features = copy.deepcopy(features).half()  # the original shares its weights with the teacher

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        last_hidden_state, pooler_output = self.features(pixel_values.half())
        return last_hidden_state.float(), pooler_output.float()


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


def _check(file: Path, batches: list[Tensor], expected: list[tuple[Tensor, Tensor]], tolerance: float) -> None:
    """Compare the outputs of ONNX Runtime with the expected ones.

    Raises:
        ValueError: If they differ by more than rounding, or if ONNX Runtime does not take the file.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no public class in common
        raise ValueError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run the model ({one_line(error)}), so nothing was written: "
            "leave onnx_opset out, or use another format."
        ) from error
    for batch, outputs in zip(batches, expected, strict=True):
        arrays = session.run(list(OUTPUTS), {INPUT: batch.numpy()})
        for name, ours, theirs in zip(OUTPUTS, outputs, map(torch.from_numpy, arrays), strict=True):
            difference = (ours - theirs).abs().max().item()
            if not difference <= tolerance * ours.abs().max().item():  # a NaN is a difference too
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
