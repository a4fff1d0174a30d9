"""Extracting every size of a space to disk, beside a plain copy of the same bytes.

    python benchmarks/extraction.py                  # all 143 sizes of ViT-L
    python benchmarks/extraction.py --every 12       # one size in twelve

Both write beside each other and wait for the disk, in turn, some sizes at a time, which are then deleted. The last
line is one JSON object.
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from poa_hf import PoaConfig, PoaForPreTraining, PoaViTConfig
from poa_hf.publishing.export import extract_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="extract one size in so many")
    parser.add_argument("--together", type=int, default=12, help="sizes that lie on the disk at a time")
    parser.add_argument("--folder", type=Path, help="where to write; default: the system's temporary folder")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    config = PoaConfig(backbone_config=PoaViTConfig(), num_prototypes=[8], head_hidden_size=8, head_bottleneck_size=8)
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
    print(f"{len(sizes)} of {len(config.backbone_config.space)} sizes of ViT-L, {gigabytes:.1f} GB; ", end="")
    print(f"torch {torch.__version__}, Python {platform.python_version()}\n")
    print(f"{'':<12} {'seconds':>8} {'GB/s':>6}")
    print(f"{'extraction':<12} {extract_seconds:>8.1f} {gigabytes / extract_seconds:>6.2f}")
    print(f"{'plain copy':<12} {copy_seconds:>8.1f} {gigabytes / copy_seconds:>6.2f}\nratio {ratio:.2f}\n")
    print(
        json.dumps(
            {
                "ratio": ratio,
                "sizes": len(sizes),
                "bytes": int(size),
                "extraction_seconds": extract_seconds,
                "copy_seconds": copy_seconds,
            }
        )
    )


if __name__ == "__main__":
    main()
