"""Extracting every size of a space to disk, beside a plain copy of the same bytes.

    python benchmarks/extraction.py                  # all 143 sizes of ViT-L
    python benchmarks/extraction.py --every 12       # one size in twelve
    python benchmarks/extraction.py --scale tiny     # nine sizes of a tiny model, in a second

Both write some sizes in turn to the same folder, wait for the disk, and delete them. Extraction
is limited by the disk, not by arithmetic, as its ratio to the copy shows. The last line is one JSON object.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch
import transformers
from parts.machine import table_head, versions
from transformers.utils import logging as transformers_logging

from poa_hf import PoaConfig, PoaForPreTraining, PoaViTConfig
from poa_hf.publishing.export import extract_all

TINY = dict(
    hidden_size=64, num_hidden_layers=4, num_attention_heads=4, min_hidden_size=32, min_num_hidden_layers=2,
    image_size=32, patch_size=8,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=("published", "tiny"), default="published")
    parser.add_argument("--every", type=int, default=1, help="extract one size in N", metavar="N")
    parser.add_argument("--together", type=int, default=12, help="sizes that lie on the disk at a time")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    backbone = PoaViTConfig(**(TINY if options.scale == "tiny" else {}))
    config = PoaConfig(backbone_config=backbone, num_prototypes=[8], head_hidden_size=8, head_bottleneck_size=8)
    model = PoaForPreTraining(config).eval()
    sizes = list(config.backbone_config.space)[:: options.every]
    extract_seconds = copy_seconds = size = 0.0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        output, copy = Path(folder) / "models", Path(folder) / "copies"
        for start in range(0, len(sizes), options.together):
            outputs = {
                output / str(sub_network): sub_network for sub_network in sizes[start : start + options.together]
            }
            os.sync()
            began = time.perf_counter()
            for _ in extract_all(model, outputs):
                pass
            os.sync()
            extract_seconds += time.perf_counter() - began
            size += sum(path.stat().st_size for path in output.rglob("*.*") if path.is_file())
            began = time.perf_counter()
            shutil.copytree(output, copy)
            os.sync()
            copy_seconds += time.perf_counter() - began
            shutil.rmtree(output)
            shutil.rmtree(copy)
    gigabytes, ratio = size / 1e9, extract_seconds / copy_seconds
    device = f"CPU, {torch.get_num_threads()} threads"  # a GPU would not be used
    print(table_head(device, transformers=transformers.__version__))
    name = "ViT-L" if options.scale == "published" else "a tiny ViT"
    print(f"{len(sizes)} of {len(config.backbone_config.space)} sizes of {name}, {gigabytes:.3g} GB\n")
    print(f"{'':<12} {'seconds':>8} {'GB/s':>6} {'ratio':>6}")
    for part, seconds in (("extraction", extract_seconds), ("plain copy", copy_seconds)):
        print(f"{part:<12} {seconds:>8.1f} {gigabytes / seconds:>6.2f} {seconds / copy_seconds:>6.2f}")
    figures = {
        "ratio": ratio,
        "device": device,
        **versions(transformers=transformers.__version__),
        "sizes": len(sizes),
        "bytes": int(size),
        "extraction_seconds": extract_seconds,
        "copy_seconds": copy_seconds,
    }
    print(f"\n{json.dumps(figures)}")


if __name__ == "__main__":
    main()
