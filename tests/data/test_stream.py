"""Lanes share a stream's rows among them, and shuffle them in blocks."""

import json
import logging
from itertools import islice

import datasets
import numpy as np
import pytest

from poa_hf.data import CropArguments, PretrainingLoader
from poa_hf.data.rows import StreamedImages, UnreadableData
from poa_hf.data.stream import Lane

from .images import png, stream_of
from .streams import FILES, ROWS, image, memory_stream, value


@pytest.mark.parametrize("num_lanes", [1, 3, 5, 12])
def test_lanes_together_read_every_row_once_per_epoch(folder, num_lanes):
    source = StreamedImages(stream_of(folder))
    assert source.num_shards == 12
    sizes = [sum(1 for _ in source.rows(source.open_shard(i))) for i in range(12)]
    seen = [[], []]
    for t in range(num_lanes):
        lane = Lane(source, 0, t, num_lanes, block_size=6)
        for epoch in range(2):
            order = np.random.default_rng([0, epoch, 0x73686172]).permutation(12)[t::num_lanes]
            rows = [lane.advance() for _ in range(sum(sizes[i] for i in order))]
            assert {row.name.split(":")[0] for row in rows} == {str(i) for i in order}
            seen[epoch] += rows
    for rows in seen:
        assert len({row.name for row in rows}) == len({row.image["bytes"] for row in rows}) == 100


def test_a_block_is_a_shuffle_of_neighbouring_rows(folder):
    lane = Lane(StreamedImages(stream_of(folder)), 0, 0, 1, block_size=30)
    blocks = [[lane.advance().name for _ in range(30)] for _ in range(3)]
    for block in blocks:
        shards = {i.split(":")[0] for i in block}
        assert 4 <= len(shards) <= 6  # spans row groups, and no more of them than 30 rows need
        assert block != sorted(block, key=lambda i: tuple(map(int, i.split(":"))))


def test_a_lane_reads_all_files_where_its_own_hold_no_row_of_a_filter():
    rows = ROWS // FILES  # of one file
    source = StreamedImages(memory_stream().filter(lambda label: label < rows, input_columns=["label"]))
    for number in range(FILES):
        lane, read = Lane(source, 0, number, FILES, block_size=5), []
        for _ in range(3 * rows):  # goes on from its state before each row
            lane = Lane(source, 0, number, FILES, block_size=5, state=json.loads(json.dumps(lane.state_dict())))
            read.append(value(lane.advance().image))
        assert [sorted(read[start : start + rows]) for start in range(0, 3 * rows, rows)] == [list(range(rows))] * 3
        whole = Lane(source, 0, number, FILES, block_size=5)
        assert [value(whole.advance().image) for _ in read] == read


TRUNCATED = {"bytes": png(0)[:300], "path": None}


def single_shard(rows) -> datasets.IterableDataset:
    features = datasets.Features(image=datasets.Image())
    return datasets.Dataset.from_dict({"image": rows}, features=features).to_iterable_dataset()


def long_runs_of_bad_rows() -> datasets.IterableDataset:
    """Images, more bad rows than a block holds, and images again."""
    return single_shard([*map(image, range(20)), *[None, TRUNCATED] * 15, *map(image, range(20, 30))])


def loader_of(stream, batch_size=4, **options) -> PretrainingLoader:
    arguments = CropArguments(global_crop_size=8, local_crop_size=8, num_local_crops=1)
    return PretrainingLoader(stream, arguments, batch_size, (2, 2), block_size=8, **options)


def ids(loader, count) -> list[list[str]]:
    return [batch["image_ids"] for batch in islice(iter(loader), count)]


def test_a_long_run_of_bad_rows_is_left_out_and_named(caplog):
    stream, good = long_runs_of_bad_rows(), {f"0:{row}" for row in (*range(20), *range(50, 60))}
    with caplog.at_level(logging.WARNING, logger="poa_hf"):
        loader = loader_of(stream)
        whole = ids(loader, 30)
    assert set(sum(whole, [])) == good and len(loader._bad_rows) == 30
    saved = loader_of(stream)
    batches = iter(saved)
    for start in range(1, 29):
        assert next(batches)["image_ids"] == whole[start - 1]
        resumed = loader_of(stream)
        resumed.load_state_dict(saved.state_dict())
        assert ids(resumed, 2) == whole[start : start + 2]
    parts = [ids(loader_of(stream, 2, rank=rank, world_size=2), 30) for rank in range(2)]
    assert [first + second for first, second in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize("rows", [[None] * 30 + [image(1)] * 2, ([TRUNCATED] * 7 + [image(1)]) * 4])
def test_few_images_among_bad_rows_are_enough(rows):
    found = ids(loader_of(single_shard(rows), batch_size=2), 20)
    assert set(sum(found, [])) <= {f"0:{number}" for number, row in enumerate(rows) if row == image(1)}


@pytest.mark.parametrize("num_lanes", [1, FILES])
def test_files_without_a_row_end_a_run_after_one_pass_over_them(num_lanes):
    labels = []
    source = StreamedImages(memory_stream().filter(lambda label: labels.append(label), input_columns=["label"]))
    with pytest.raises(UnreadableData, match="No row could be read.*that its filters keep some of their rows"):
        Lane(source, 0, 0, num_lanes, block_size=5).advance()
    assert set(labels) == set(range(ROWS)) and len(labels) <= ROWS + ROWS // FILES
