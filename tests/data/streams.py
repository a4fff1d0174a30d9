"""Streams of numbered images, built in the ways in which users build them."""

import io
import tarfile

import datasets
import numpy as np
from datasets.distributed import split_dataset_by_node
from PIL import Image

ROWS, FILES = 48, 4
FEATURES = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))


def image(number: int) -> dict:
    """An image of one grey value, which every crop of it has, too."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number,) * 3).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def numbered(numbers=range(ROWS)) -> datasets.Dataset:
    rows = {"image": [image(n) for n in numbers], "label": list(numbers)}
    return datasets.Dataset.from_dict(rows, features=FEATURES)


def parquet_stream(folder, rows: int = ROWS, files: int = FILES) -> datasets.IterableDataset:
    folder.mkdir()
    for number in range(files):
        name = folder / f"train-{number:05d}-of-{files:05d}.parquet"
        numbered().select(range(rows)).shard(files, number).to_parquet(name, batch_size=5)
    return datasets.load_dataset(str(folder), split="train", streaming=True)


def memory_stream() -> datasets.IterableDataset:
    """Like a stream of files; but `datasets` waits for seconds at the end of a shuffled stream of parquet files."""
    return numbered().to_iterable_dataset(num_shards=FILES)


def tar_stream(folder) -> datasets.IterableDataset:
    folder.mkdir()
    for number in range(FILES):
        with tarfile.open(folder / f"train-{number}.tar", "w") as tar:
            for row in range(number * ROWS // FILES, (number + 1) * ROWS // FILES):
                for suffix, content in (("png", image(row)["bytes"]), ("cls", str(row).encode())):
                    info = tarfile.TarInfo(f"{row:05d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return datasets.load_dataset("webdataset", data_dir=str(folder), split="train", streaming=True)


def generate(starts=(0,), count=ROWS):
    for start in starts:
        for number in range(start, start + count):
            yield {"image": image(number)["bytes"], "label": number}


def half(rows):
    return {name: values[::2] for name, values in rows.items()}


def twice(rows):
    return {name: [value for value in values for _ in range(2)] for name, values in rows.items()}


def darker(row):
    return {"image": Image.new("RGB", (8, 8), (row["label"] // 2,) * 3)}


def from_generator(**arguments):
    return datasets.IterableDataset.from_generator(generate, **arguments)


# Read shard by shard.
SEPARABLE = {
    "as it is": lambda s: s,
    "filter": lambda s: s.filter(lambda row: row["label"] % 3 == 0),
    "map": lambda s: s.map(darker),
    "map with features": lambda s: s.map(darker, features=FEATURES),
    "concatenated": lambda s: datasets.concatenate_datasets([s, s.filter(lambda row: row["label"] % 5 == 0)]),
    "formatted": lambda s: s.with_format("numpy"),
    "mapped in a format": lambda s: s.with_format("torch").map(lambda row: {"more": row["label"]}),
    "decoded in threads": lambda s: s.decode(num_threads=2),
    "a filter of images decoded in threads": lambda s: s.decode(num_threads=2).filter(lambda r: r["label"] % 4 == 0),
    "renamed and cast": lambda s: s.rename_column("image", "picture").cast_column("label", datasets.Value("int32")),
    "without features": lambda s: s.map(lambda row: row),
    "a generator": lambda s: from_generator(),
    "a generator with parts": lambda s: from_generator(gen_kwargs={"starts": [0, 10, 20, 30], "count": 10}),
    "one shard of the user's": lambda s: s.shard(4, 1),
}
# Read in order, and resumed from a state.
EXACT = {
    "take": lambda s: s.take(17),
    "skip": lambda s: s.skip(17),
    "skip and take": lambda s: s.skip(7).take(11),
    "take of a filter": lambda s: s.filter(lambda row: row["label"] % 3 == 0).take(5),
    "map of take": lambda s: s.take(17).map(darker),
    "filter of skip": lambda s: s.skip(17).filter(lambda row: row["label"] % 2 == 0),
    "take and its rest": lambda s: datasets.concatenate_datasets([s.skip(40), s.take(7)]),
    "take of a generator": lambda s: from_generator().take(9),
}
# Read in order, and from the start when resuming.
REREAD = {
    "shuffle": lambda s: s.shuffle(seed=3, buffer_size=10),
    "take of shuffle": lambda s: s.shuffle(seed=3, buffer_size=10).take(13),
    "skip of shuffle": lambda s: s.shuffle(seed=3, buffer_size=10).skip(13),
    "take of the next epoch": lambda s: in_epoch(s.shuffle(seed=3, buffer_size=10).take(13), 2),
    "interleaved": lambda s: datasets.interleave_datasets([s.take(12), s.skip(12)], seed=1, probabilities=[0.5, 0.5]),
    "interleaved by turns": lambda s: datasets.interleave_datasets([s, s.filter(lambda r: r["label"] < 9)]),
    "beside each other": lambda s: datasets.concatenate_datasets(
        [s.select_columns("image"), s.select_columns("label")], axis=1
    ),
    "repeat": lambda s: s.repeat(2),
    "filter by index": lambda s: s.filter(lambda row, index: index % 2 == 0, with_indices=True),
    "map by index": lambda s: s.map(lambda row, index: {"label": index}, with_indices=True),
    "batched filter": lambda s: s.filter(lambda rows: [i % 7 == 0 for i in range(len(rows["label"]))], batched=True),
    "half of each batch": lambda s: s.map(half, batched=True, batch_size=7),
    "twice each batch": lambda s: s.map(twice, batched=True, batch_size=7),
    "batches in a format": lambda s: (
        s.with_format("arrow").map(lambda t: t, batched=True, batch_size=7).with_format(None)
    ),
    "last batch dropped": lambda s: s.map(lambda r: r, batched=True, batch_size=7, drop_last_batch=True),
    "a part by shards": lambda s: split_dataset_by_node(s, 1, 2),
    "a part by rows": lambda s: split_dataset_by_node(s, 1, 3),
    "take of a part": lambda s: split_dataset_by_node(s, 1, 2).take(5),
}
IN_ORDER = EXACT | REREAD


def in_epoch(stream, epoch):
    stream.set_epoch(epoch)
    return stream


def value(image) -> int:
    """The number of an image as a row has it: decoded or not, or a tensor."""
    from poa_hf.data import open_image

    return int(np.ravel(image if hasattr(image, "ravel") else np.asarray(open_image(image)))[0])
