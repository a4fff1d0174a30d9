"""Training reads exactly the rows of a stream, in one order for any number of processes and workers."""

import gc
import itertools
import json
import multiprocessing
import os
import signal
from collections import Counter

import datasets
import pytest

from poa_hf.data import CropArguments, PretrainingLoader

from .streams import IN_ORDER, ROWS, SEPARABLE, from_generator, image, memory_stream, numbered, parquet_stream, value

ARGS = CropArguments(global_crop_size=4, local_crop_size=4, num_local_crops=1)


@pytest.fixture(scope="module")
def stream():
    return memory_stream()


def make(dataset, batch_size=4, **options):
    column = "picture" if "picture" in (dataset.column_names or []) else "image"
    options = {"image_column": column, "block_size": 5, "num_lanes": 4} | options
    return PretrainingLoader(dataset, ARGS, batch_size, (2, 2), **options)


def take(loader, count: int) -> list[list[int]]:
    """The numbers of the images of some batches: all crops of an image have its grey value."""
    with_views = (batch["global_crops"] for batch in itertools.islice(loader, count))
    return [[int(crop[0, 0, 0]) for crop in crops[: len(crops) // 2]] for crops in with_views]


def joined(ranks: list[list[list[int]]]) -> list[list[int]]:
    return [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("kind", SEPARABLE | IN_ORDER)
def test_every_epoch_has_the_rows_that_iterating_gives(stream, kind):
    dataset = (SEPARABLE | IN_ORDER)[kind](stream)
    expected = Counter(value(row["picture" if "picture" in row else "image"]) for row in dataset)
    epoch = expected.total()
    # in one lane, an epoch ends where the next one begins
    numbers = list(itertools.chain(*take(make(dataset, num_lanes=1), -(-3 * epoch // 4))))
    for start in range(0, 3 * epoch, epoch):
        assert Counter(numbers[start : start + epoch]) == expected
    assert numbers[:epoch] != numbers[epoch : 2 * epoch] or len(expected) < 3


@pytest.mark.parametrize("kind", ["as it is", "filter", "concatenated", "take", "skip", "shuffle", "repeat"])
def test_the_order_is_the_same_for_any_number_of_processes(stream, kind):
    dataset = (SEPARABLE | IN_ORDER)[kind](stream)
    whole = take(make(dataset, 12), 9)
    for world_size in (2, 3, 4):
        ranks = [take(make(dataset, 12 // world_size, rank=r, world_size=world_size), 9) for r in range(world_size)]
        assert joined(ranks) == whole


@pytest.mark.parametrize(
    "kind",
    ["as it is", "take", *(pytest.param(k, marks=pytest.mark.slow) for k in ("interleaved", "half of each batch"))],
)
def test_the_order_is_the_same_for_any_number_of_workers(stream, kind):
    dataset = (SEPARABLE | IN_ORDER)[kind](stream)
    whole = take(make(dataset), 17)
    for workers in (1, 2, 3):
        assert take(make(dataset, num_workers=workers), 17) == whole
    assert not multiprocessing.active_children()


@pytest.mark.parametrize(
    "kind",
    ["as it is", "shuffle", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("skip", "batched filter"))],
)
def test_resuming_with_other_workers_and_processes_goes_on_exactly(stream, kind):
    dataset = (SEPARABLE | IN_ORDER)[kind](stream)
    whole = take(make(dataset), 23)
    for before, after, stop in ((0, 3, 1), (3, 0, 7), (2, 1, 16)):
        saved = make(dataset, num_workers=before)
        take(saved, stop)
        resumed = make(dataset, num_workers=after)
        resumed.load_state_dict(json.loads(json.dumps(saved.state_dict())))
        assert take(resumed, 5) == whole[stop : stop + 5]
        ranks = [make(dataset, 2, rank=rank, world_size=2) for rank in range(2)]
        for loader in ranks:
            loader.load_state_dict(saved.state_dict())
        assert joined([take(loader, 5) for loader in ranks]) == whole[stop : stop + 5]


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_hold_out_is_never_trained_on(stream, shuffled):
    from poa_hf.evaluation.labelled import LabelledImages

    dataset = stream.shuffle(seed=5, buffer_size=20) if shuffled else stream
    held_out = LabelledImages(dataset.take(10))
    tested = {value(row.image) for share in range(2) for _, rows in held_out.batches(4, share, 2) for row in rows}
    trained = set(itertools.chain(*take(make(dataset.skip(10), num_workers=2), 30)))
    assert len(tested) == 10 and not tested & trained and tested | trained == set(range(ROWS))


def test_training_and_evaluation_read_streams_of_one_source_by_turns(stream):
    """Streams made from the same one share its steps in `datasets`, and these hold the position."""
    whole = take(make(stream.skip(10)), 12)
    loader = make(stream.skip(10))
    batches = iter(loader)
    numbers = [[int(crop[0, 0, 0]) for crop in next(batches)["global_crops"][:4]] for _ in range(3)]
    assert len(list(stream.take(10))) == 10  # as an evaluation does
    numbers += [[int(crop[0, 0, 0]) for crop in next(batches)["global_crops"][:4]] for _ in range(3)]
    resumed = make(stream.skip(10))
    resumed.load_state_dict(loader.state_dict())
    assert numbers + take(resumed, 6) == whole


def test_streams_without_an_end(stream):
    numbers = Counter(itertools.chain(*take(make(stream.repeat(None), num_workers=1), 30)))
    assert set(numbers) == set(range(ROWS)) and set(numbers.values()) == {2, 3}


def test_images_that_a_stream_gives_as_pillow_images_reach_the_workers(tmp_path):
    """Upright, and a broken one is a bad row: Pillow forgets both when it sends an image to another process."""
    from PIL import Image

    paths = [tmp_path / f"{number}.tif" for number in range(4)]
    for number, path in enumerate(paths):
        Image.new("L", (8, 4), 60 * number).save(path, tiffinfo={274: 6})
    paths[3].write_bytes(paths[3].read_bytes()[:20] + bytes(6))

    def rows():
        for path in (paths[0], paths[1], paths[2]):
            opened = Image.open(path)
            assert opened.getexif()[274] == 6
            yield {"image": opened}

    dataset = datasets.IterableDataset.from_generator(rows)
    assert take(make(dataset), 6) == take(make(dataset, num_workers=1), 6)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_function_of_the_users_that_fails_is_named(stream, workers):
    def brighten(row):
        if row["label"] == 30:
            raise KeyError("brightness")
        return row

    mapped = stream.map(brighten, features=stream.features)
    with pytest.raises(
        ValueError,
        match=r"failed in brighten \(test_loader_streams.py, line \d+\) with KeyError .*brightness.*: mend the",
    ) as caught:
        take(make(mapped, num_workers=workers), 20)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()

    class Failing(list):
        def __getitem__(self, index):
            raise KeyError(index)

    with pytest.raises(ValueError, match="failed in __getitem__ .*KeyError"):
        PretrainingLoader(Failing([image(0)]), ARGS, 1, (2, 2)).__iter__().__next__()


@pytest.mark.parametrize("victim", ["reader", "worker"])
def test_a_process_that_is_killed_ends_the_loader(stream, victim):
    batches = iter(make(stream, num_workers=1))
    next(batches)
    worker, reader = sorted(multiprocessing.active_children(), key=lambda child: child.pid)
    os.kill((reader if victim == "reader" else worker).pid, signal.SIGKILL)
    with pytest.raises((RuntimeError, ValueError), match="DataLoader worker|A data worker ended while"):
        for _ in range(1000):
            next(batches)
    del batches
    gc.collect()  # the traceback refers to the other process


def test_a_run_of_the_first_version_keeps_its_order():
    """Its state names as many slots as it had workers, from which batches are taken by turns."""
    loader = make(memory_stream(), num_slots=2, num_lanes=2)
    whole = take(loader, 20)
    assert loader.state_dict()["num_slots"] == 2 and take(make(memory_stream(), num_lanes=4), 20) != whole
    saved = make(memory_stream(), num_slots=2, num_lanes=2)
    take(saved, 7)
    resumed = make(memory_stream(), num_workers=3)
    resumed.load_state_dict(saved.state_dict())
    assert take(resumed, 13) == whole[7:]


def test_a_stream_that_is_split_by_hand_is_refused_with_several_processes(stream):
    with pytest.raises(ValueError, match="split_dataset_by_node"):
        make(IN_ORDER["a part by rows"](stream), rank=1, world_size=3)


def test_reading_in_order_is_said_once(stream, caplog):
    for rank in range(2):
        make(stream.take(20), 2, rank=rank, world_size=2)
    assert caplog.text.count("read in its own order because of take: every process reads all of it") == 1


@pytest.mark.parametrize(
    "build",
    [
        lambda d: d.select(range(9, 30)),
        lambda d: d.filter(lambda row: row["label"] % 3 == 0),
        lambda d: d.shuffle(seed=1).shard(3, 1),
        lambda d: d.train_test_split(test_size=9, seed=2)["train"],
        lambda d: datasets.concatenate_datasets([d.select(range(3)), d]),
        lambda d: d.with_format("torch"),
    ],
)
def test_every_epoch_of_a_table_has_its_rows(build):
    dataset = build(numbered())
    expected = Counter(int(row["label"]) for row in dataset)
    for world_size in (1, 3):
        batches = -(-2 * len(dataset) // 12)
        ranks = [
            take(make(dataset, 12 // world_size, rank=r, world_size=world_size), batches) for r in range(world_size)
        ]
        numbers = list(itertools.chain(*joined(ranks)))
        assert Counter(numbers[: len(dataset)]) == expected == Counter(numbers[len(dataset) : 2 * len(dataset)])


def test_parquet_files_and_their_hold_out(tmp_path):
    files = parquet_stream(tmp_path / "tables")
    trained = Counter(itertools.chain(*take(make(files.skip(5), num_lanes=None, num_workers=2), 43)))
    assert trained == dict.fromkeys(range(5, ROWS), 4)
    assert {n for batch in take(make(from_generator().take(7)), 9) for n in batch} == set(range(7))
