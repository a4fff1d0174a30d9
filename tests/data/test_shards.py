"""The shards of a stream hold the rows that iterating it gives, and reading goes on exactly from any row."""

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from poa_hf.data import open_dataset
from poa_hf.data.rows import StreamedImages, UnreadableData
from poa_hf.data.shards import refuse_split_stream
from poa_hf.evaluation.labelled import LabelledImages

from .images import png
from .streams import IN_ORDER, REREAD, SEPARABLE, memory_stream, parquet_stream, tar_stream, value


@pytest.fixture(scope="module")
def stream():
    return memory_stream()


def column_of(dataset) -> str:
    return "picture" if "picture" in (dataset.column_names or []) else "image"


def iterated(dataset) -> list[int]:
    column = column_of(dataset)
    return [value(row[column]) for row in dataset]


def read(images: StreamedImages) -> list[int]:
    return [value(image) for n in range(images.num_shards) for image in images.rows(images.open_shard(n))]


@pytest.mark.parametrize("kind", SEPARABLE | IN_ORDER)
def test_shards_hold_the_rows_that_iterating_gives(stream, kind):
    dataset = (SEPARABLE | IN_ORDER)[kind](stream)
    images = StreamedImages(dataset, column_of(dataset))
    assert read(images) == iterated(dataset) == read(images)
    assert (images.shards.in_order is None) == (kind in SEPARABLE)


@pytest.mark.parametrize("kind", SEPARABLE | IN_ORDER)
def test_reading_goes_on_from_any_row(stream, kind):
    dataset = (SEPARABLE | IN_ORDER)[kind](stream)
    images = StreamedImages(dataset, column_of(dataset))
    for number in {0, images.num_shards - 1}:
        whole = [value(image) for image in images.rows(images.open_shard(number))]
        for start in range(len(whole) + 1):
            shard = images.open_shard(number)
            rows = images.rows(shard)
            for _ in range(start):
                next(rows)
            state = images.state(shard) if start else None
            assert (state is None) == (start == 0 or kind in REREAD)
            again = images.rows(images.open_shard(number), start, state)
            assert [value(image) for image in again] == whole[start:], start


@pytest.mark.parametrize("make", [parquet_stream, tar_stream])
@pytest.mark.parametrize("kind", ["as it is", "filter", "take", "filter of skip"])
def test_files_are_read_like_other_streams(tmp_path, make, kind):
    dataset = make(tmp_path / "files")
    column = "png" if make is tar_stream else "image"
    if make is tar_stream:
        dataset = dataset.map(lambda row: {"label": int(row["cls"])})
    dataset = (SEPARABLE | IN_ORDER)[kind](dataset)
    images = StreamedImages(dataset, column)
    assert read(images) == [value(row[column]) for row in dataset]
    assert images.num_shards == (1 if kind in IN_ORDER else 4 if make is tar_stream else 12)


def test_a_part_for_one_process_is_not_shared_by_several(stream):
    part = IN_ORDER["a part by rows"](stream)
    refuse_split_stream(part, 1)
    refuse_split_stream(stream, 4)
    with pytest.raises(ValueError, match="4 processes would share it once more: give all of them the whole dataset"):
        refuse_split_stream(part, 4)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("counts", [(3, 0), (0, 3)])
def test_a_file_without_rows_is_an_empty_shard(tmp_path, counts, streaming):
    for number, count in enumerate(counts):
        labels = pa.array(range(count), pa.int64())
        table = pa.table({"image": pa.array(map(png, range(count)), pa.binary()), "label": labels})
        parquet.write_table(table, tmp_path / f"train-{number}.parquet")
    dataset = open_dataset(str(tmp_path), streaming=streaming)
    rows = [row for _, batch in LabelledImages(dataset).batches(2) for row in batch]
    assert [row.label for row in rows] == [0, 1, 2]
    if streaming:
        images = StreamedImages(dataset)
        assert [len(list(images.rows(images.open_shard(n)))) for n in range(2)] == list(counts)
        with pytest.raises(UnreadableData, match=rf"train-{counts.index(0)}.parquet holds no rows.*take it out"):
            list(LabelledImages(dataset.take(3)).batches(4))
