"""Small datasets of numbered images."""

import io

import datasets
import numpy as np
from PIL import Image

ROWS_PER_FILE, FILES, ROW_GROUP = 25, 4, 9
FEATURES = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    pixels[0, 0] = number
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_parquet(folder, values):
    folder.mkdir(exist_ok=True)
    for f in range(FILES):
        part = values[f * ROWS_PER_FILE : (f + 1) * ROWS_PER_FILE]
        rows = {"image": [v and {"bytes": v, "path": None} for v in part], "label": list(range(len(part)))}
        dataset = datasets.Dataset.from_dict(rows, features=FEATURES)
        dataset.to_parquet(folder / f"train-{f:05d}-of-{FILES:05d}.parquet", batch_size=ROW_GROUP)
    return folder


def stored_images(values):
    rows = [{"image": v and {"bytes": v, "path": None}, "label": 0} for v in values]
    return datasets.Dataset.from_list(rows, features=FEATURES)


def stream_of(folder):
    return datasets.load_dataset(str(folder), split="train", streaming=True)
