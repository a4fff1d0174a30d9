"""Images per CPU-second that a data worker decodes, crops and collates, beside a plain Pillow pipeline.

    python benchmarks/data_rate.py                                     # built-in textures as JPEG files
    python benchmarks/data_rate.py path/to/images path/to/others       # anything that `datasets` opens
    python benchmarks/data_rate.py path/to/images --enlarge 4          # as if a camera had taken them

The plain pipeline does the published augmentation (two crops of 224 pixels and eight of 96; flip, colour jitter, grey,
blur, solarise, normalise) one crop at a time and hands out float32 tensors, as torchvision's transforms do on Pillow
images. Ours hands out uint8 crops, and colours them per batch on the training device, which is timed separately. Both
read the same encoded images from memory, in one process with one thread, by turns; a ratio is the median over the
turns. The last line is one JSON object.
"""

import argparse
import io
import json
import math
import statistics
import time
from pathlib import Path
from unittest import mock

import numpy as np
import PIL
import torch
from parts.machine import device_name, find_device, table_head, versions
from parts.timing import synchronize
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from poa_hf.data import PretrainingLoader, augment
from poa_hf.data import crops as crops_module
from poa_hf.data.crops import CropArguments, draw_boxes
from poa_hf.data.decoding import open_image
from poa_hf.data.textures import TextureDataset

ARGS = CropArguments()
BATCH = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", help="folders or names, as `poa pretrain --dataset_name` takes them")
    parser.add_argument("--images", type=int, default=80, help="of each dataset, at most")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--enlarge", type=float, default=1, help="resize the images by this factor first")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker
    device, name = find_device(), device_name()
    print(table_head(f"colour on {name}", Pillow=PIL.__version__))
    print(f"{options.repeats} turns of each pipeline, medians; CPU time of one process with one thread\n")
    figures = {}
    for dataset in options.datasets or ["textures"]:
        images = encoded_images(dataset, options.images, options.enlarge)
        figures[Path(dataset).name] = found = measure(images, options.repeats, device)
        report(Path(dataset).name, len(images), found)
    ratio = min(found["ratio"] for found in figures.values())
    print(f"images per CPU-second of a worker, ours over plain: at least {ratio:.2f}\n")
    shown = versions(pillow=PIL.__version__)
    print(json.dumps({"ratio": ratio, "device": name, **shown, "enlarge": options.enlarge, "datasets": figures}))


def encoded_images(name: str, count: int, enlarge: float) -> list[bytes]:
    """Return `count` images as the bytes of their files."""
    if name == "textures":
        source = TextureDataset(size=400)
        return [as_jpeg(source[index]["image"], enlarge) for index in range(count)]
    from poa_hf.data.rows import StreamedImages
    from poa_hf.data.sources import open_dataset

    stream = StreamedImages(open_dataset(name, None, "train", True))
    images: list[bytes] = []
    for shard in range(stream.num_shards):
        for value in stream.rows(stream.open_shard(shard)):
            if len(images) == count:
                return images
            content = value["bytes"] or Path(value["path"]).read_bytes()
            images.append(content if enlarge == 1 else as_jpeg(open_image(content), enlarge))
    return images


def as_jpeg(image: Image.Image, enlarge: float) -> bytes:
    file = io.BytesIO()
    size = tuple(round(side * enlarge) for side in image.size)
    image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def measure(images: list[bytes], repeats: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of CPU time per image of each pipeline and of its parts."""
    batches = len(images) // BATCH or 1
    size = min(BATCH, len(images))
    loader = PretrainingLoader(images, ARGS, batch_size=size, mask_grid=(14, 14))

    def ours():
        iterator = iter(loader)
        for _ in range(batches):
            next(iterator)

    def without_draft():
        with mock.patch.object(crops_module, "shrink_while_decoding", lambda image, needed: 1):
            ours()

    rng = np.random.default_rng(0)

    def plain():
        for batch in range(batches):
            plain_batch(images[batch * size : (batch + 1) * size], rng)

    def decode():
        for image in images[: batches * size]:
            Image.open(io.BytesIO(image)).convert("RGB")

    batch = next(iter(loader))

    def colour():
        for kind in ("global", "local"):
            pixels = batch[f"{kind}_crops"].to(device)
            augment(pixels, batch[f"{kind}_augmentation"], ARGS.image_mean, ARGS.image_std)
        synchronize(device)

    parts = {"ours": ours, "plain": plain, "ours without draft": without_draft, "decoding alone": decode}
    for function in (*parts.values(), colour):
        function()
    times = {name: [] for name in parts}
    for _ in range(repeats):
        for name, function in parts.items():
            times[name].append(1000 * cpu_seconds(function) / (batches * size))
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    coloured = [1000 * cpu_seconds(colour, clock) / size for _ in range(repeats)]
    median = statistics.median
    return {
        "ratio": median(a / b for a, b in zip(times["plain"], times["ours"], strict=True)),
        "draft_gain": median(a / b for a, b in zip(times["ours without draft"], times["ours"], strict=True)),
        "images_per_cpu_second": 1000 / median(times["ours"]),
        "plain_images_per_cpu_second": 1000 / median(times["plain"]),
        "milliseconds": median(times["ours"]),
        "plain_milliseconds": median(times["plain"]),
        "full_decoding_milliseconds": median(times["decoding alone"]),
        "device_colour_milliseconds": median(coloured),
        "megapixels": float(np.mean([math.prod(Image.open(io.BytesIO(image)).size) for image in images])) / 1e6,
    }


def cpu_seconds(function, clock=time.process_time) -> float:
    began = clock()
    function()
    return clock() - began


def plain_batch(images: list[bytes], rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The published augmentation, one crop at a time: float32 (2B, 3, g, g) and (V*B, 3, l, l)."""
    views: list[list[torch.Tensor]] = [[] for _ in range(2 + ARGS.num_local_crops)]
    for content in images:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        for number, view in enumerate(views):
            view.append(plain_crop(image, number, rng))
    stacked = [torch.stack(view) for view in views]
    return torch.cat(stacked[:2]), torch.cat(stacked[2:])


def plain_crop(image: Image.Image, number: int, rng: np.random.Generator) -> torch.Tensor:
    side, scale = ARGS.local_crop_size, ARGS.local_crop_scale
    if number < 2:
        side, scale = ARGS.global_crop_size, ARGS.global_crop_scale
    low, high = (np.array([value]) for value in scale)
    box = draw_boxes(rng, *image.size, low, high)[0].tolist()
    crop = image.crop(box).resize((side, side), Image.Resampling.BICUBIC)
    if rng.random() < ARGS.flip_probability:
        crop = ImageOps.mirror(crop)
    if rng.random() < ARGS.color_jitter_probability:
        brightness, contrast, saturation, hue = ARGS.color_jitter
        for operation in rng.permutation(4):
            if operation == 3:
                crop = shift_hue(crop, rng.uniform(-hue, hue))
            else:
                enhancer = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[operation]
                strength = (brightness, contrast, saturation)[operation]
                crop = enhancer(crop).enhance(rng.uniform(1 - strength, 1 + strength))
    if rng.random() < ARGS.grayscale_probability:
        crop = ImageOps.grayscale(crop).convert("RGB")
    if rng.random() < ARGS.blur_probability[min(number, 2)]:
        crop = crop.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    if number == 1 and rng.random() < ARGS.solarize_probability:
        crop = ImageOps.solarize(crop, 128)
    tensor = torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous().to(torch.float32).div_(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (ARGS.image_mean, ARGS.image_std))
    return tensor.sub_(mean).div_(std)


def shift_hue(image: Image.Image, turns: float) -> Image.Image:
    """Shift the hue by a share of a turn, as torchvision does on Pillow images."""
    hue, saturation, value = image.convert("HSV").split()
    shifted = np.array(hue) + np.int32(turns * 255).astype(np.uint8)  # wraps around, as the colour circle does
    return Image.merge("HSV", (Image.fromarray(shifted), saturation, value)).convert("RGB")


def report(name: str, count: int, found: dict[str, float]) -> None:
    print(f"{name}: {count} images of {found['megapixels']:.2f} megapixels on average")
    print(f"{'':<40} {'ms per image':>13} {'images/CPU-s':>13}")
    for label, value in (
        ("plain Pillow pipeline", found["plain_milliseconds"]),
        ("our worker", found["milliseconds"]),
        ("colour of a batch on the device", found["device_colour_milliseconds"]),
        ("decoding at full size, in both", found["full_decoding_milliseconds"]),
    ):
        print(f"{label:<40} {value:>13.2f} {1000 / value:>13.0f}")
    print(
        f"ratio {found['ratio']:.2f}; decoding large JPEGs at a reduced size: {found['draft_gain']:.2f} times as fast\n"
    )


if __name__ == "__main__":
    main()
