"""Images that cannot be decoded are named once in a run, and listed in its folder."""

import json

import numpy as np
from accelerate import Accelerator
from PIL import Image

from poa_hf.data import CropArguments, PretrainingLoader, open_dataset
from poa_hf.runs.layout import RunFolder
from poa_hf.training.skipped_images import SkippedImages

from ..data.test_damage import write_shards


def test_each_image_is_named_and_listed_once_also_after_a_resumption(tmp_path, caplog):
    photos = tmp_path / "photos"
    (photos / "a").mkdir(parents=True)
    for number in range(5):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(photos / "a" / f"{number}.png")
    (photos / "a" / "empty.png").write_bytes(b"")
    (photos / "cut.png").write_bytes((photos / "a" / "3.png").read_bytes()[:-30])
    args = CropArguments(global_crop_size=8, local_crop_size=4, num_local_crops=0)
    loader = PretrainingLoader(open_dataset(str(photos)), args, 7, (2, 2), warn_of_bad_rows=False)
    path, batches, accelerator = RunFolder(tmp_path).skipped_images, iter(loader), Accelerator(cpu=True)
    first = SkippedImages(accelerator, path, 0)
    for step in (1, 2, 3):
        first.add(next(batches), step)
        assert first.report() == {"skipped_images": 2 * step, "damaged_shards": 0}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sorted(line["image"] for line in lines) == ["a/empty.png", "cut.png"]
    assert all(line["step"] == 1 and line["process"] == 0 and line["reason"] for line in lines)
    again = SkippedImages(accelerator, path, 2)
    again.add(next(batches), 3)
    again.report()
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines
    assert len(caplog.messages) == 2 and "Image cut.png could not be decoded" in caplog.text
    # lines of steps that are repeated are written anew
    restarted = SkippedImages(accelerator, path, 0)
    assert path.read_text() == ""
    restarted.add(next(batches), 1)
    restarted.report()
    assert len(path.read_text().splitlines()) == 2
    assert path in set(RunFolder(tmp_path).removed())


def test_a_damaged_shard_is_counted_once(tmp_path):
    (tmp_path / "shards").mkdir()
    paths = write_shards(tmp_path / "shards", "tar")
    paths[1].write_bytes(paths[1].read_bytes()[:8000])
    args = CropArguments(global_crop_size=8, local_crop_size=4, num_local_crops=0)
    loader = PretrainingLoader(open_dataset(str(tmp_path / "shards")), args, 6, (2, 2), warn_of_bad_rows=False)
    skipped, batches = SkippedImages(Accelerator(cpu=True), RunFolder(tmp_path).skipped_images, 0), iter(loader)
    for step in range(1, 16):  # several epochs
        skipped.add(next(batches), step)
    assert skipped.report()["damaged_shards"] == 1
    lines = [json.loads(line) for line in RunFolder(tmp_path).skipped_images.read_text().splitlines()]
    assert [line["damaged_shard"] for line in lines] == [True] and "is damaged after" in lines[0]["reason"]
