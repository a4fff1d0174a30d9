"""An extracted model as ONNX, checked against the model that it was made from."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BitImageProcessorPil, PreTrainedModel

INPUT, OUTPUTS = "pixel_values", ("last_hidden_state", "pooler_output")  # as Optimum names them
# The opset whose operators the exporter has; higher ones are converted from it. ONNX Runtime has it since 1.14.
_OPSET = 18
_TOLERANCE = 1e-3  # of the largest output: other kernels round differently, a wrong graph is off by far more


def check_onnx() -> None:
    """ValueError with the command to install, if what writes and checks ONNX is not there."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"ONNX needs packages that are not here ({error.name}): pip install 'poa_hf[onnx]'."
        ) from error


def as_onnx(
    model: PreTrainedModel, processor: BitImageProcessorPil, batch_size: int | None = None
) -> Callable[[Path], None]:
    """What writes `model.onnx` into a folder, and checks it there by ONNX Runtime.

    The graph takes `pixel_values` (N, 3, H, W) as `processor` makes them and gives `last_hidden_state` and
    `pooler_output`. N is `batch_size`; any, if None. H and W are fixed: Swin's windows and ViT's position embeddings
    are made for them. Weights beyond 2 GB, which ONNX's one file cannot hold, go to `model.onnx.data`.

    Raises:
        ValueError: If the packages are not there, `batch_size` is below 1; when writing, if outputs differ.
    """
    check_onnx()
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"onnx_batch is {batch_size}: give at least 1, or leave it out for batches of any size.")
    features = _Features(model).eval()
    shape = (model.config.num_channels, processor.crop_size["height"], processor.crop_size["width"])
    generator = torch.Generator().manual_seed(0)
    # an example of one image would make the exporter take the batch for constant
    batches = [torch.randn(count, *shape, generator=generator) for count in ([batch_size] if batch_size else [2, 1, 3])]
    with torch.no_grad(), _quiet():
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

    def save(folder: Path) -> None:
        file = folder / "model.onnx"
        program.save(file)
        _check(file, batches, expected)

    return save


class _Features(nn.Module):
    """The two outputs of a model, in their order."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values)
        return output.last_hidden_state, output.pooler_output


def _check(file: Path, batches: list[Tensor], expected: list[tuple[Tensor, Tensor]]) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for batch, outputs in zip(batches, expected, strict=True):
        found = session.run(list(OUTPUTS), {INPUT: batch.numpy()})
        for name, ours, theirs in zip(OUTPUTS, outputs, map(torch.from_numpy, found), strict=True):
            difference = (ours - theirs).abs().max().item()
            if not difference <= _TOLERANCE * ours.abs().max().item():
                raise ValueError(
                    f"ONNX Runtime gives {name} that is off by {difference:.1g} for {len(batch)} images, and nothing "
                    "was written: use another format."
                )


@contextmanager
def _quiet():
    """Without what the exporter says of itself: operators of packages that are not there, its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)
