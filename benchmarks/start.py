"""How long it takes until a run trains: making its model, and the command until its first step.

    python benchmarks/start.py
    python benchmarks/start.py --preset tiny --compile off

Two figures:

- `ratio`: CPU seconds of making a model for pre-training over those of one stock ViT of the same size with random
  weights, in turns in one process, the median of several turns;
- `first_step`: seconds from the start of `poa pretrain` (built-in textures) until its first step is logged, twice with
  one folder of compiled code: the second run finds what the first has compiled.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from parts.machine import device_name, find_device, table_head, versions
from parts.presets import PRESETS
from transformers import Dinov2Config, Dinov2Model

from poa_hf import PoaConfig, PoaForPreTraining, PoaViTConfig


def cpu_seconds(make: type, config: object) -> float:
    start = time.process_time()
    make(config)
    return time.process_time() - start


def making(preset: dict, turns: int) -> dict[str, list[float]]:
    """Return the CPU seconds of making both models, turn by turn; the first turn warms up and is left out."""
    backbone = PoaViTConfig(**preset["backbone"])
    ours = PoaConfig(backbone_config=backbone, **preset["heads"])
    stock = Dinov2Config(**backbone.plain_config(backbone.space.full).to_dict())
    found: dict[str, list[float]] = {"ours": [], "stock": []}
    for _ in range(turns + 1):
        for name, make, config in (("ours", PoaForPreTraining, ours), ("stock", Dinov2Model, stock)):
            found[name].append(cpu_seconds(make, config))
    return {name: values[1:] for name, values in found.items()}


def seconds_to_first_step(recipe: Path, folder: Path, compile: str) -> float:
    """Return the seconds from the start of the command until the line of its first step."""
    command = [sys.executable, "-m", "poa_hf", "pretrain", "--config", str(recipe), "--overwrite_output_dir"]
    command += ["--output_dir", str(folder), "--compile", compile]
    start = time.perf_counter()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout or ():
            if line.startswith("step "):
                seconds = time.perf_counter() - start
                process.kill()
                return seconds
    raise SystemExit(f"{' '.join(command)} ended with status {process.returncode} before its first step.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="vit_large")
    parser.add_argument("--turns", type=int, default=3, help="of making the models")
    parser.add_argument("--compile", choices=("auto", "blocks", "off"), default="auto")
    parser.add_argument("--only_models", action="store_true", help="leave out the command")
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    found = making(preset, options.turns)
    ratio = statistics.median(a / b for a, b in zip(found["ours"], found["stock"], strict=True))
    print(table_head(device_name()))
    for name, values in found.items():
        print(f"making {name:<6} " + "  ".join(f"{value:6.2f} s" for value in values) + " of CPU time")
    print(f"ratio {ratio:.2f}")
    first_step: list[float] = []
    if not options.only_models:
        cuda = find_device().type == "cuda"
        model = {"backbone_config": {"model_type": "poa_vit", **preset["backbone"]}, **preset["heads"]}
        recipe = {"dataset_name": "textures", "model": model, "per_device_train_batch_size": preset["batch"],
                  "max_steps": 2, "logging_steps": 1, "save_steps": 2, "bf16": cuda, "disable_tqdm": True,
                  "dataloader_num_workers": 4 if cuda else 0, **preset["crops"]}  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "code")
            path = Path(folder) / "recipe.yaml"
            path.write_text(yaml.safe_dump(recipe))
            for name in ("cold", "warm"):
                first_step.append(seconds_to_first_step(path, Path(folder) / "run", options.compile))
                print(f"command to first step, {name}: {first_step[-1]:.1f} s")
    print(json.dumps({"ratio": ratio, "making": found, "first_step": first_step, "preset": options.preset,
                      "compile": options.compile, "device": device_name(), **versions()}))  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
