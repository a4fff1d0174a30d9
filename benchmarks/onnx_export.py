"""ONNX Runtime against PyTorch, on published sizes of random weights at 224 pixels, with one thread each.

python benchmarks/onnx_export.py            # vit 384x12, swin 96x2-2-6-2, resnet 64x3-4-6-3
python benchmarks/onnx_export.py vit small vit large

The last line is one JSON object: `ratio` is the largest ratio of times to PyTorch's, `difference` the largest
difference of features.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime
import torch
from parts.machine import table_head, versions
from transformers import AutoModel

from poa_hf import PoaResNetConfig, PoaSwinConfig, PoaViTConfig
from poa_hf.data.processor import evaluation_processor
from poa_hf.publishing.formats.onnx import as_onnx

CONFIGS = {"vit": PoaViTConfig, "swin": PoaSwinConfig, "resnet": PoaResNetConfig}
OUTPUTS = ("last_hidden_state", "pooler_output")


def measure(family: str, name: str, folder: Path) -> dict:
    torch.manual_seed(0)
    config = CONFIGS[family]()
    size = config.space.resolve(name)
    model = AutoModel.from_config(config).extract(size)
    for parameter in model.parameters():  # LayerScale of 1e-5 would hide the blocks
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    start = time.perf_counter()
    as_onnx(model, evaluation_processor(224, [0.5] * 3, [0.5] * 3))(folder)
    seconds = time.perf_counter() - start
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options)
    difference = 0.0
    for count in (1, 2, 4):
        pixels = torch.randn(count, 3, 224, 224)
        expected, found = model(pixels), session.run(OUTPUTS, {"pixel_values": pixels.numpy()})
        for output, tensor in zip(found, (expected[name] for name in OUTPUTS), strict=True):
            difference = max(difference, ((torch.from_numpy(output) - tensor).abs().max() / tensor.abs().max()).item())
    pixels = torch.randn(1, 3, 224, 224)
    ratios = []
    for _ in range(15):  # in turns, so that both meet the same disturbances
        times = [time.perf_counter()]
        model(pixels)
        times.append(time.perf_counter())
        session.run(OUTPUTS, {"pixel_values": pixels.numpy()})
        times.append(time.perf_counter())
        ratios.append((times[2] - times[1]) / (times[1] - times[0]))
    return {
        "family": family,
        "size": str(size),
        "difference": difference,
        "megabytes": (folder / "model.onnx").stat().st_size / 1e6,
        "time_ratio": statistics.median(ratios),
        "export_seconds": seconds,
    }


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    device = "CPU, 1 thread"
    print(table_head(device, onnxruntime=onnxruntime.__version__), end="\n\n")
    arguments = sys.argv[1:] or ["vit", "small", "swin", "tiny", "resnet", "50"]
    print("| family | size | largest difference / largest output | file | time / PyTorch's | export and check |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows = []
    for family, name in zip(arguments[::2], arguments[1::2], strict=True):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row := measure(family, name, Path(folder)))
        cells = f"| {family} | `{row['size']}` | {row['difference']:.1e} | {row['megabytes']:.0f} MB "
        print(f"{cells}| {row['time_ratio']:.2f} | {row['export_seconds']:.0f} s |", flush=True)
    summary = {
        name: max(row[column] for row in rows) for name, column in (("ratio", "time_ratio"), ("difference",) * 2)
    }
    print(json.dumps({**summary, "device": device, **versions(onnxruntime=onnxruntime.__version__), "sizes": rows}))


if __name__ == "__main__":
    main()
