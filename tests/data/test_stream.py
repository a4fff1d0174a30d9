"""Lanes share a stream's rows among them, and shuffle them in blocks."""

import json

import numpy as np
import pytest

from poa_hf.data.rows import StreamedImages, UnreadableData
from poa_hf.data.stream import Lane

from .images import stream_of
from .streams import FILES, ROWS, memory_stream, value


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


@pytest.mark.parametrize("num_lanes", [1, FILES])
def test_files_without_a_row_end_a_run_after_one_pass_over_them(num_lanes):
    labels = []
    source = StreamedImages(memory_stream().filter(lambda label: labels.append(label), input_columns=["label"]))
    with pytest.raises(UnreadableData, match="No row could be read.*that its filters keep some of their rows"):
        Lane(source, 0, 0, num_lanes, block_size=5).advance()
    assert set(labels) == set(range(ROWS)) and len(labels) <= ROWS + ROWS // FILES
