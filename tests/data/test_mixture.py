"""A mixture gives each dataset its share, each row of it once per epoch, in an order that only the seed decides."""

import json
from collections import Counter

import numpy as np
import pytest

from poa_hf.data import CropArguments, DatasetMixture, PretrainingLoader
from poa_hf.data.mixture import Mixing, block_counts

from .streams import FEATURES, image, memory_stream, numbered

ARGS = CropArguments(global_crop_size=8, local_crop_size=4, num_local_crops=1)


def mixture(kinds="indexed stream", weights=(3, 1), **options):
    """Datasets of rows 0..19, 48 (a stream) and 100..104, by whose grey value an image is told."""
    made = {"indexed": lambda: numbered(range(20)), "stream": memory_stream, "small": lambda: numbered(range(100, 105))}
    names = kinds.split()
    return DatasetMixture([made[name]() for name in names], weights, names, **options)


def read(dataset, batches, batch_size=6, world_size=1, num_workers=0, states=None, **options):
    """Return the ids and grey values of global batches, and the states of all processes."""
    found, saved = [[] for _ in range(batches)], []
    for rank in range(world_size):
        loader = PretrainingLoader(
            dataset, ARGS, batch_size // world_size, (2, 2), rank, world_size, num_workers, block_size=5, **options
        )
        if states is not None:
            loader.load_state_dict(json.loads(json.dumps(states)))
        for number, batch in zip(range(batches), loader, strict=False):
            greys = batch["global_crops"][: batch_size // world_size, 0, 0, 0].tolist()
            found[number] += zip(batch["image_ids"], greys, strict=True)
        saved.append(loader.state_dict())
    return found, saved


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1, 2), (5, 1, 1), (1e-3, 1), (2.5, 2.5, 95), (1, 9999)])
def test_counts_are_shares_to_a_hundredth_of_a_per_cent(weights):
    counts = block_counts(weights)
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count / sum(counts) - weight / sum(weights)) <= 1.01e-4 and count > 0
    assert sum(counts) >= 1000


@pytest.mark.parametrize("counts", [(700, 300), (1, 9, 990), (2, 3)])
def test_each_block_holds_every_dataset_as_often_as_its_share_says(counts):
    size, seen = sum(counts), Counter()
    places = np.arange(4 * size)
    which, rows = Mixing(counts, seed=3)(places)
    for place in places:  # the reference counts from the start
        assert rows[place] == seen[which[place]]
        seen[which[place]] += 1
        if (place + 1) % size == 0:
            assert [seen[number] for number in range(len(counts))] == [count * (place + 1) // size for count in counts]
    later = np.array([3 * size, 7, 2 * size + 1])  # any place at once
    assert np.array_equal(Mixing(counts, seed=3)(later), (which[later], rows[later]))
    assert size < 9 or not np.array_equal(which, Mixing(counts, seed=4)(places)[0])


def test_every_row_of_each_dataset_is_read_once_per_epoch():
    batches, _ = read(mixture("indexed stream small", (2, 2, 1)), 10, batch_size=60)
    ids = [each for batch in batches for each in batch]
    for kind, numbers in (("indexed", range(20)), ("small", range(100, 105))):
        greys = [grey for name, grey in ids if name.startswith(f"{kind}/")]
        for first in range(0, len(greys) - len(numbers) + 1, len(numbers)):
            assert sorted(greys[first : first + len(numbers)]) == list(numbers)
    # each of a stream's lanes has epochs of its own
    streamed = Counter(grey for name, grey in ids if name.startswith("stream/"))
    assert set(streamed) == set(range(48)) and max(streamed.values()) - min(streamed.values()) <= 2
    counts = Counter(name.partition("/")[0] for name, _ in ids)
    assert abs(counts["small"] / len(ids) - 0.2) < 0.03


@pytest.mark.parametrize("kinds", ["indexed small", "indexed stream"])
def test_processes_do_not_change_the_order(kinds):
    expected, _ = read(mixture(kinds), 8)
    for world_size in (2, 3):
        assert read(mixture(kinds), 8, world_size=world_size)[0] == expected


@pytest.mark.parametrize("kinds", ["indexed small", "indexed stream"])
def test_workers_do_not_change_the_order(kinds):
    assert read(mixture(kinds), 6, num_workers=2)[0] == read(mixture(kinds), 6)[0]


@pytest.mark.slow  # each worker imports torch
@pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
def test_workers_that_are_started_anew_give_the_same(start_method):
    """As on macOS and Windows."""
    started = read(mixture(), 3, num_workers=2, start_method=start_method)[0]
    assert started == read(mixture(), 3)[0]


@pytest.mark.parametrize("kinds", ["indexed small", "indexed stream", "stream small"])
def test_a_run_goes_on_from_any_batch_with_any_number_of_processes(kinds):
    expected, _ = read(mixture(kinds), 12)
    for stop, before, after in ((4, 1, 2), (7, 3, 1)):
        first, states = read(mixture(kinds), stop, world_size=before)
        then, _ = read(mixture(kinds), 12 - stop, world_size=after, states=states)
        assert first + then == expected, stop


def test_another_mixture_is_no_continuation():
    _, states = read(mixture(), 2)
    for other, message in (
        (mixture(weights=(1, 1)), r"shares of datasets 75 %, 25 %, this run 50 %, 50 %: resume with the same"),
        (mixture("small stream"), r"num_images of small 20, this run 5"),
        (mixture("indexed stream small", (2, 1, 1)), r"number of datasets 2, this run 3"),
        (numbered(range(20)), r"number of datasets 2, this run 1"),
    ):
        with pytest.raises(ValueError, match=message):
            read(other, 1, states=states)


def test_bad_rows_are_named_with_their_dataset(caplog):
    import datasets

    broken = datasets.Dataset.from_dict(
        {"image": [image(1), {"bytes": b"none", "path": None}], "label": [0, 1]}, features=FEATURES
    )
    loader = PretrainingLoader(DatasetMixture([broken, numbered()], [1, 1], ["a", "b"]), ARGS, 8, (2, 2))
    batch = next(iter(loader))
    assert [name for name, _ in batch["bad_rows"]] == ["a/1"] and "Image a/1 could not be decoded" in caplog.text
    assert all(name != "a/1" for name in batch["image_ids"])


def test_sizes_are_known_as_far_as_those_of_all_datasets_are():
    assert PretrainingLoader(mixture("indexed small"), ARGS, 2, (2, 2)).num_images == 25
    streamed = PretrainingLoader(mixture(), ARGS, 2, (2, 2))
    assert streamed.num_images is None and streamed.num_files == 4


def test_each_dataset_may_have_a_column_of_its_own():
    dataset = DatasetMixture(
        [numbered(range(5)).rename_column("image", "x_ray"), numbered(range(5))], image_columns=["x_ray", None]
    )
    assert len(read(dataset, 1)[0][0]) == 6
    with pytest.raises(ValueError, match=r"1: The dataset has no column 'x_ray' for --image_column"):
        PretrainingLoader(DatasetMixture(dataset.datasets), ARGS, 2, (2, 2), image_column="x_ray")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1]],), "A mixture of 1 datasets is none"),
        (([[1], [2]], [1, 2, 3]), "3 weights for 2 datasets: give one each"),
        (([[1], [2]], [1, 1], ["a"]), "1 names for 2 datasets: give one each"),
        (([[1], [2]], None, None, ["a"]), "1 image_columns for 2 datasets: give one each"),
        (([[1], [2]], [1, None]), "weight None of a dataset is no number: give a positive number"),
        (([[1], [2]], ["a", 1]), "weight 'a' of a dataset is no number: give a positive number"),
        (([[1], [2]], [1, 0]), "weight 0 of a dataset is not above 0"),
        (([[1], [2]], [1, float("nan")]), "weight nan"),
        (([[1], [2]], [1e-9, 1]), "share of 1e-09: give weights that are 0.0001 of their sum or more"),
        (([[1], [2]], [1, 1], ["a", "a"]), "called a, a: give different names"),
    ],
)
def test_mistakes_in_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        DatasetMixture(*arguments)
