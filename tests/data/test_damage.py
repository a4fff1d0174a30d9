"""Damaged, missing and foreign files of a stream: what is before the damage is read, and the file is named."""

import gzip
import io
import json
import pickle
import tarfile

import datasets
import numpy as np
import pytest

from poa_hf.data import CropArguments, PretrainingLoader, UndecodableImage, open_dataset
from poa_hf.data.damage import DamagedShard
from poa_hf.data.errors import UnreadableData
from poa_hf.data.rows import StreamedImages
from poa_hf.data.stream import Lane
from poa_hf.evaluation.labelled import LabelledImages

from .images import FEATURES, png

FILES, ROWS = 3, 12
ARGS = CropArguments(global_crop_size=8, local_crop_size=4, num_local_crops=0)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def tar_of(numbers, fields=("png", "cls")) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for number in numbers:
            for field in fields:
                content = png(number) if field == "png" else str(number % 3).encode()
                member = tarfile.TarInfo(f"{number:04d}.{field}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture(params=["tar", "parquet"])
def shards(request, tmp_path):
    """The paths of three shards."""
    return write_shards(tmp_path, request.param)


def write_shards(folder, kind):
    paths = [folder / f"train-{number:05d}.{kind.removesuffix('.gz')}" for number in range(FILES)]
    for number, path in enumerate(paths):
        numbers = range(number * ROWS, number * ROWS + ROWS)
        if kind.startswith("tar"):
            content = tar_of(numbers)
            path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
        else:
            rows = {"image": [{"bytes": png(n), "path": None} for n in numbers], "label": [n % 3 for n in numbers]}
            datasets.Dataset.from_dict(rows, features=FEATURES).to_parquet(path, batch_size=4)
    return paths


def number_of(image) -> int | str:
    if isinstance(image, UndecodableImage):
        return str(image)
    data = image["bytes"]
    return next(n for n in range(FILES * ROWS) if png(n) == data)


def one_epoch(folder) -> list[int | str]:
    """The numbers of the images of an epoch as a lane reads them, and the reasons of rows that are none."""
    source = StreamedImages(open_dataset(str(folder)))
    lane = Lane(source, 0, 0, 1, block_size=5)
    read = []
    while lane._cursor.epoch == 0 or lane._block:
        row = lane.advance()
        if lane._cursor.epoch > 0 and lane._start["epoch"] > 0:
            break
        read.append(number_of(row.image))
    return read


def cut(share):
    return lambda data: data[: int(share * len(data))]


def member(data: bytes, number: int) -> int:
    """The place of a member's header in an archive."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()[number].offset


def overwritten(data: bytes, number: int, content: bytes) -> bytes:
    place = member(data, number)
    return data[:place] + content + data[place + len(content) :]


TAR_DAMAGE = {  # what happened to the archive, and the samples (two members each) that can still be read
    "cut within an image": (lambda data: data[: member(data, 8) + 700], 4),
    "cut within a header": (lambda data: data[: member(data, 8) + 100], 4),
    "cut between samples": (lambda data: data[: member(data, 8)], 4),
    "cut between the members of a sample": (lambda data: data[: member(data, 9)], 4),
    "no end": (lambda data: data[: member(data, 23) + 1024], 12),
    "random bytes for a header": (lambda data: overwritten(data, 10, np.random.default_rng(0).bytes(512)), 5),
    "zeros for a header": (lambda data: overwritten(data, 10, bytes(512)), 5),
    "zeros over several members": (lambda data: overwritten(data, 10, bytes(4096)), 5),
    "two archives in one": (lambda data: data + data, 12),
}


@pytest.mark.parametrize("place", range(FILES))
@pytest.mark.parametrize("damage", TAR_DAMAGE)
def test_archives_that_break_or_end_early(damage, place, tmp_path):
    paths = write_shards(tmp_path, "tar")
    break_it, samples = TAR_DAMAGE[damage]
    paths[place].write_bytes(break_it(paths[place].read_bytes()))
    read = one_epoch(tmp_path)
    # `datasets` hands a sample on when the next one begins
    sound = [n for n in range(FILES * ROWS) if n // ROWS != place or n % ROWS < samples]
    images = [n for n in read if isinstance(n, int)]
    assert len(images) == len(set(images)) and set(images) <= set(sound) and len(images) >= len(sound) - 1
    (reason,) = [reason for reason in read if isinstance(reason, str)]
    assert f"{paths[place]} is damaged after" in reason and "\n" not in reason


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_compressed_archive_that_is_cut(share, tmp_path):
    paths = write_shards(tmp_path, "tar.gz")
    paths[1].write_bytes(cut(share)(paths[1].read_bytes()))
    read = one_epoch(tmp_path)
    images = [n for n in read if isinstance(n, int)]
    assert sorted(images) == sorted(n for n in range(FILES * ROWS) if n // ROWS != 1 or n in images)
    (reason,) = [reason for reason in read if isinstance(reason, str)]
    assert f"{paths[1]} is damaged after" in reason


PAGE = b"<!DOCTYPE html><p>Not found"
WORDS = {b"": "is empty (0 bytes)", LFS: "is a Git LFS pointer", PAGE: "is a web page"}


@pytest.mark.parametrize("place", range(FILES))
@pytest.mark.parametrize("data", [*WORDS, b"garbage" * 400, cut(0.1), cut(0.7)])
def test_files_that_cannot_be_opened_at_all(data, place, shards, tmp_path):
    path = shards[place]
    path.write_bytes(data(path.read_bytes()) if callable(data) else data)
    read = one_epoch(tmp_path)
    others = [n for n in range(FILES * ROWS) if n // ROWS != place]
    assert sorted(n for n in read if isinstance(n, int) and n // ROWS != place) == others
    reasons = [reason for reason in read if isinstance(reason, str)]
    words = WORDS.get(data, "is damaged after") if isinstance(data, bytes) else "is damaged after"
    assert len(reasons) == 1 and str(path) in reasons[0] and words in reasons[0]


def break_pages(path, row_group=1):
    import pyarrow.parquet as pq

    column = pq.ParquetFile(path).metadata.row_group(row_group).column(0)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 60] = b"\xff" * 60
    path.write_bytes(data)


def test_broken_pages_cost_their_row_group(tmp_path):
    paths = write_shards(tmp_path, "parquet")
    break_pages(paths[1])
    read = one_epoch(tmp_path)
    assert sorted(n for n in read if isinstance(n, int)) == [*range(16), *range(20, 36)]
    (reason,) = [reason for reason in read if isinstance(reason, str)]
    assert f"{paths[1]} (row group 1) is damaged after 0 rows" in reason


def batches(folder, count, workers=0, states=None):
    loader = PretrainingLoader(open_dataset(str(folder)), ARGS, 4, (2, 2), num_workers=workers, block_size=6)
    if states is not None:
        loader.load_state_dict(states)
    iterator = iter(loader)
    read = [(batch["image_ids"], batch["skipped"]) for _, batch in zip(range(count), iterator, strict=False)]
    iterator.close()
    return read, json.loads(json.dumps(loader.state_dict()))


def damaged(paths):
    if paths[1].suffix == ".tar":
        paths[1].write_bytes(cut(0.5)(paths[1].read_bytes()))
    else:
        break_pages(paths[1])


def test_training_goes_on_names_the_file_once_and_resumes_exactly(shards, tmp_path, caplog):
    damaged(shards)
    expected, _ = batches(tmp_path, 24)
    assert [str(shards[1]) in record.message for record in caplog.records] == [True]
    assert "the rest of it is left out" in caplog.text and sum(skipped for _, skipped in expected) >= 2  # every epoch
    for stop in range(1, 24, 3):
        first, state = batches(tmp_path, stop)
        rest, _ = batches(tmp_path, 24 - stop, workers=2 if stop == 10 else 0, states=state)
        assert first + rest == expected


def test_an_evaluation_refuses_a_damaged_file(shards, tmp_path):
    damaged(shards)
    label = "cls" if shards[0].suffix == ".tar" else "label"
    images = LabelledImages(open_dataset(str(tmp_path)), label_column=label)
    with pytest.raises(DamagedShard, match=rf"^The file {shards[1]}.* is damaged after \d+ rows .*: download or write"):
        list(images.batches(4))


def test_all_files_damaged(shards, tmp_path):
    for path in shards:
        path.write_bytes(LFS)
    with pytest.raises(ValueError, match=f"^The file {shards[0]} is a Git LFS pointer.*git lfs pull"):
        open_dataset(str(tmp_path))


def test_a_file_that_is_gone(shards, tmp_path):
    stream = StreamedImages(open_dataset(str(tmp_path)))
    shards[1].unlink()
    with pytest.raises(UnreadableData, match=f"{shards[1]}.* is missing, although the dataset was opened"):
        for shard in range(stream.num_shards):
            list(stream.rows(stream.open_shard(shard)))


def test_a_table_of_other_columns(tmp_path):
    paths = write_shards(tmp_path, "parquet")
    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(paths[1])
    stream = StreamedImages(open_dataset(str(tmp_path)))
    with pytest.raises(UnreadableData, match=f"{paths[1]}.* has the columns text where the dataset has image, label"):
        for shard in range(stream.num_shards):
            list(stream.rows(stream.open_shard(shard)))


@pytest.mark.parametrize(("field", "content"), [("json", b"{"), ("cls", b"two"), ("pth", b"weights"), ("npy", b"n")])
def test_a_field_that_is_not_what_its_name_says(field, content, tmp_path):
    paths = write_shards(tmp_path, "tar")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in (("9.png", png(9)), (f"9.{field}", content)):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    paths[1].write_bytes(file.getvalue())
    stream = StreamedImages(open_dataset(str(tmp_path)))
    with pytest.raises(UnreadableData, match=f"^[^\n]*{paths[1]}[^\n]*\\.$"):
        for shard in range(stream.num_shards):
            list(stream.rows(stream.open_shard(shard)))


def test_other_readers_of_archives_are_left_alone(tmp_path):
    write_shards(tmp_path, "tar")
    one_epoch(tmp_path)
    assert tarfile.TarFile.tarinfo is tarfile.TarInfo
    error = pickle.loads(pickle.dumps(DamagedShard(["a.tar"], 3, "cut")))
    assert (error.files, error.rows) == (["a.tar"], 3) and "a.tar is damaged after 3 rows (cut)" in str(error)


@pytest.fixture
def url(tmp_path):
    """Serves a folder; returns its address."""
    import functools
    import http.server
    import threading

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("damage", ["cut within an image", "cut between samples", "random bytes for a header"])
def test_archives_that_are_streamed_from_a_server(damage, tmp_path, url):
    paths = write_shards(tmp_path, "tar")
    break_it, samples = TAR_DAMAGE[damage]
    paths[1].write_bytes(break_it(paths[1].read_bytes()))
    files = [f"{url}/{path.name}" for path in paths]
    stream = StreamedImages(datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True))
    lane = Lane(stream, 0, 0, 1, block_size=100)
    rows = [number_of(lane.advance().image) for _ in range(2 * ROWS + samples)]
    assert sorted(n for n in rows if isinstance(n, int))[:ROWS] == [*range(ROWS)]
    (reason,) = [reason for reason in rows if isinstance(reason, str)]
    assert f"{files[1]} is damaged after" in reason
    paths[2].unlink()
    with pytest.raises(UnreadableData, match=f"^The file {files[2]} is missing, although"):
        list(stream.rows(stream.open_shard(2)))


@pytest.mark.parametrize("damage", [cut(0.5), lambda data: LFS])
def test_a_dataset_that_is_converted_first_says_what_to_do(damage, shards, tmp_path):
    shards[1].write_bytes(damage(shards[1].read_bytes()))
    with pytest.raises(ValueError, match=r"a file of it is damaged \(.*\): leave out --streaming false"):
        open_dataset(str(tmp_path), streaming=False)
