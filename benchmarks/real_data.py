"""Images per second of a run that streams JPEG shards, beside the same steps on images that are on the device already.

    python benchmarks/real_data.py                                  # ViT-L, published heads, 50 images, bfloat16
    python benchmarks/real_data.py --preset vit_small               # data workers have ten times as much to do
    python benchmarks/real_data.py --preset tiny --steps 6          # for a CPU

A `PoaTrainer` trains on parquet shards of JPEG files, drawn as textures of 400 pixels, as `poa pretrain` does: reading,
decoding and cropping in workers, copies, colours, step. After some steps to warm up, `--steps` steps are timed as they
are, and as many more on one batch that was copied and coloured once. The spaces have one elastic size each, so that all
steps cost the same. `colour_share` is the time that the copy and the colours of a batch take by themselves, over that
of a step. The last line is one JSON object.
"""

import argparse
import io
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from datasets import Dataset, Image, disable_progress_bars, load_dataset
from parts.machine import device_name, find_device, table_head, versions
from parts.timing import synchronize
from transformers import TrainerCallback

from poa_hf import PoaConfig, PoaForPreTraining, PoaTrainer, PoaTrainingArguments, PoaViTConfig
from poa_hf.data.textures import TextureDataset
from poa_hf.training import step as step_module
from poa_hf.training.preparation import coloured_crops

PRESETS = {
    "vit_large": dict(
        backbone=dict(min_hidden_size=512, hidden_size_step=512, min_num_hidden_layers=24), heads={},
        arguments=dict(per_device_train_batch_size=50),
    ),
    "vit_small": dict(
        backbone=dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, min_hidden_size=192,
                      hidden_size_step=192, min_num_hidden_layers=12),
        heads=dict(num_prototypes=[4096, 8192]), arguments=dict(per_device_train_batch_size=128),
    ),
    "tiny": dict(
        backbone=dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, min_hidden_size=32,
                      hidden_size_step=32, min_num_hidden_layers=2, image_size=32),
        heads=dict(num_prototypes=[64, 128], head_hidden_size=64, head_bottleneck_size=32),
        arguments=dict(per_device_train_batch_size=8, global_crop_size=32, local_crop_size=16),
    ),
}  # fmt: skip


class Phases(TrainerCallback):
    """Times the steps of a run in two phases: on what the loader gives, then on one batch again and again."""

    def __init__(self, warm_up: int, steps: int, device: torch.device):
        self.first, self.middle, self.last = warm_up, warm_up + steps, warm_up + 2 * steps
        self.device, self.times = device, {}
        self.coloured: dict[str, torch.Tensor] | None = None
        self.repeats = False

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in (self.first, self.middle, self.last):
            synchronize(self.device)
            self.times[state.global_step] = time.perf_counter()
        self.repeats = state.global_step >= self.middle

    def crops(self, batch, *args):
        """Stand in for `coloured_crops`."""
        if not self.repeats or self.coloured is None:
            self.coloured = coloured_crops(batch, *args)
        return self.coloured

    def seconds(self) -> tuple[float, float]:
        """Return the seconds of a step in each phase."""
        steps = self.middle - self.first
        return tuple((b - a) / steps for a, b in itertools.pairwise(self.times[s] for s in sorted(self.times)))


class ResidentTrainer(PoaTrainer):
    """A trainer whose loader is not asked for more once the last phase has begun."""

    phases: Phases

    def _start(self, resume):
        batches = super()._start(resume)

        def repeated():
            for batch in batches:
                self.one_batch = batch
                yield batch
                while self.phases.repeats:
                    yield batch

        return repeated()


def write_shards(folder: Path, num_images: int, num_shards: int) -> None:
    """Write parquet shards of JPEG files, of which each 100th has the same picture."""
    textures, files = TextureDataset(size=400), []
    for index in range(min(100, num_images)):
        file = io.BytesIO()
        textures[index]["image"].save(file, "JPEG", quality=90)
        files.append({"bytes": file.getvalue(), "path": None})
    for shard in range(num_shards):
        files_of_shard = [files[index % len(files)] for index in range(shard, num_images, num_shards)]
        Dataset.from_dict({"image": files_of_shard}).cast_column("image", Image()).to_parquet(
            folder / f"train-{shard:05}.parquet"
        )


def colour_seconds(trainer: ResidentTrainer, device: torch.device) -> float:
    """Return the seconds that the copy and the colours of a batch take by themselves, the median of several."""
    times = []
    for _ in range(7):
        synchronize(device)
        started = time.perf_counter()
        coloured_crops(trainer.one_batch, trainer.args, device, trainer.optimizer_step.colour_all)
        synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="vit_large")
    parser.add_argument("--batch", type=int, help="images")
    parser.add_argument("--workers", type=int, default=14, help="data workers")
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each phase")
    parser.add_argument("--warm_up", type=int, default=10, help="steps before these")
    parser.add_argument("--images", type=int, default=2000, help="JPEG files in 16 shards")
    options = parser.parse_args()
    preset, device = PRESETS[options.preset], find_device()
    arguments = preset["arguments"] | ({"per_device_train_batch_size": options.batch} if options.batch else {})
    torch.manual_seed(0)
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder, "shards")
        shards.mkdir()
        write_shards(shards, options.images, 16)
        args = PoaTrainingArguments(
            output_dir=f"{folder}/run", max_steps=options.warm_up + 2 * options.steps, logging_steps=5,
            save_steps=10**6, dataloader_num_workers=options.workers, bf16=device.type == "cuda", disable_tqdm=True,
            masked_prediction_start_step=0, report_to="none", **arguments,
        )  # fmt: skip
        config = PoaConfig(backbone_config=PoaViTConfig(drop_path_rate=0.2, **preset["backbone"]), **preset["heads"])
        with device:
            model = PoaForPreTraining(config)
        stream = load_dataset("parquet", data_files=str(shards / "*.parquet"), split="train", streaming=True)
        phases = Phases(options.warm_up, options.steps, device)
        trainer = ResidentTrainer(model, args, train_dataset=stream, callbacks=[phases])
        trainer.phases = phases
        with mock.patch.object(step_module, "coloured_crops", phases.crops):
            state = trainer.train()
        colour = colour_seconds(trainer, device)
    shown, resident = phases.seconds()
    waits = [line["data_wait"] for line in state.log_history if phases.first < line["step"] <= phases.middle]
    batch = args.per_device_train_batch_size
    figures = {
        "images_per_second": batch / shown,
        "resident_images_per_second": batch / resident,
        "ratio": resident / shown,
        "colour_milliseconds": 1000 * colour,
        "colour_share": colour / resident,
        "data_wait": statistics.mean(waits),
        "workers": options.workers,
    }
    print(table_head(device_name()))
    print(f"{options.preset}: {options.steps} steps of {batch} images from JPEG shards, then as many on one batch\n")
    for name, value in figures.items():
        print(f"{name:<28} {value:,.3f}")
    named = {"preset": options.preset, "batch": batch}
    print(json.dumps({**named, **figures, "device": device_name(), **versions()}))


if __name__ == "__main__":
    main()
