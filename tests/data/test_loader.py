"""The sequence of batches depends on seed and data only, and goes on exactly from a saved state."""

import io
import json
import logging
import multiprocessing

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from poa_hf.data import CropArguments, PretrainingLoader
from poa_hf.data.loader import _with_tensors

from .images import FILES, ROWS_PER_FILE, png, stored_images, stream_of, write_parquet

ARGS = CropArguments(global_crop_size=12, local_crop_size=8, num_local_crops=3)
GRID = (4, 4)


@pytest.fixture(scope="module")
def sources(folder):
    values = [png(i) for i in range(37)]
    return {"stream": stream_of(folder), "indexed": stored_images(values)}


def make(dataset, batch_size=8, **options):
    options = {"block_size": 7, "num_slots": 2, "num_lanes": 4} | options
    return PretrainingLoader(dataset, ARGS, batch_size, GRID, **options)


def take(loader, count):
    batches = iter(loader)
    result = [next(batches) for _ in range(count)]
    batches.close()
    return result


def join(parts):
    """The global batch from the batches of all ranks."""
    joined = {"image_ids": sum((p["image_ids"] for p in parts), []), "skipped": sum(p["skipped"] for p in parts)}

    def by_view(get, views):
        return torch.cat([get(p).unflatten(0, (views, -1)) for p in parts], dim=1).flatten(0, 1)

    for name, views in (("global_crops", 2), ("masks", 2), ("local_crops", ARGS.num_local_crops)):
        joined[name] = by_view(lambda p, name=name: p[name], views)
    for kind, views in (("global_augmentation", 2), ("local_augmentation", ARGS.num_local_crops)):
        for name in parts[0][kind]:
            joined[kind, name] = by_view(lambda p, kind=kind, name=name: p[kind][name], views)
    return joined


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        a, b = join([a]), join([b])
        assert a["image_ids"] == b["image_ids"]
        for name, value in a.items():
            assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name], name


def assert_joined_same(whole, ranks):
    for k, batch in enumerate(whole):
        a, b = join([batch]), join([rank[k] for rank in ranks])
        for name, value in a.items():
            assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name], name


@pytest.mark.parametrize("kind", ["stream", "indexed"])
def test_batches_hold_what_they_promise(sources, kind):
    first, second = take(make(sources[kind]), 2)
    assert first["global_crops"].shape == (16, 3, 12, 12) and first["global_crops"].dtype == torch.uint8
    assert first["local_crops"].shape == (24, 3, 8, 8)
    assert first["masks"].shape == (16, 16) and first["masks"].dtype == torch.bool
    assert {len(v) for v in first["global_augmentation"].values()} == {16}
    assert {len(v) for v in first["local_augmentation"].values()} == {24}
    assert len(first["image_ids"]) == len(set(first["image_ids"])) == 8
    assert first["skipped"] == 0
    assert first["image_ids"] != second["image_ids"]
    # views of an image differ, and the masks do not repeat
    assert not torch.equal(first["global_crops"][:8], first["global_crops"][8:])
    assert not torch.equal(first["masks"], second["masks"])


def test_all_that_goes_to_a_gpu_is_pinned(sources, monkeypatch):
    """With `pin_memory` of a machine without a GPU, which takes note of what it is asked for."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    pinned = []
    (batch,) = take(make(sources["indexed"]), 1)
    assert not pinned
    arrays = {
        name: {key: values.numpy() for key, values in value.items()} if isinstance(value, dict) else value.numpy()
        for name, value in batch.items()
        if name == "masks" or name.endswith("augmentation")
    }
    tensors = _with_tensors(arrays, pinned=True)
    found = [tensors["masks"], *tensors["global_augmentation"].values(), *tensors["local_augmentation"].values()]
    assert len(pinned) == len(found) > 10 and all(map(torch.equal, found, pinned))


def test_no_local_crops(sources):
    args = CropArguments(global_crop_size=12, local_crop_size=8, num_local_crops=0)
    (batch,) = take(PretrainingLoader(sources["stream"], args, 4, GRID), 1)
    assert batch["local_crops"].shape == (0, 3, 8, 8)
    assert {len(values) for values in batch["local_augmentation"].values()} == {0}
    assert batch["local_augmentation"]["order"].shape == (0, 4)
    assert len(batch["global_crops"]) == 8


def test_augmentation_fits_the_crops(sources):
    """The parameters lie in the order of the crops: image by image they are those that `multi_crop` drew."""
    from poa_hf.data import multi_crop, open_image

    values = [png(i) for i in range(37)]
    (_, batch) = take(make(sources["indexed"], 4), 2)
    for position, name in enumerate(batch["image_ids"]):
        rng = np.random.default_rng([0, 1, position])
        global_crops, local_crops, drawn = multi_crop(open_image(values[int(name)]), rng, ARGS)
        assert np.array_equal(batch["global_crops"][position::4].numpy(), global_crops)
        assert np.array_equal(batch["local_crops"][position::4].numpy(), local_crops)
        for key, value in drawn.items():
            assert np.array_equal(batch["global_augmentation"][key][position::4].numpy(), value[:2])
            assert np.array_equal(batch["local_augmentation"][key][position::4].numpy(), value[2:])


@pytest.mark.parametrize("kind", ["stream", "indexed"])
@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_sequence_is_the_same_for_any_number_of_processes(sources, kind, world_size):
    whole = take(make(sources[kind]), 20)
    ranks = [take(make(sources[kind], 8 // world_size, rank=r, world_size=world_size), 20) for r in range(world_size)]
    assert_joined_same(whole, ranks)


def test_lanes_that_processes_share(sources):
    whole = take(make(sources["stream"], 6, num_lanes=4), 20)
    ranks = [take(make(sources["stream"], 2, num_lanes=4, rank=r, world_size=3), 20) for r in range(3)]
    assert_joined_same(whole, ranks)


@pytest.mark.parametrize("kind", ["stream", "indexed"])
@pytest.mark.parametrize("workers", [2, 3])
def test_sequence_is_the_same_for_any_number_of_workers(sources, kind, workers):
    assert_same(take(make(sources[kind]), 9), take(make(sources[kind], num_workers=workers), 9))


@pytest.mark.parametrize("kind", ["stream", "indexed"])
def test_resume_after_any_batch_equals_uninterrupted(sources, kind):
    whole = take(make(sources[kind], 5), 45)
    saved = make(sources[kind], 5)
    states = [json.dumps(saved.state_dict())]
    states += [json.dumps(saved.state_dict()) for _ in zip(range(41), saved, strict=False)]
    for stop, state in enumerate(states[:42]):
        resumed = make(sources[kind], 5)
        resumed.load_state_dict(json.loads(state))
        # batch stop + 2 reads the slot of batch stop again
        assert_same(whole[stop : stop + 3], take(resumed, 3))
        assert resumed.state_dict()["batch"] == stop + 3


@pytest.mark.parametrize("kind", ["stream", "indexed"])
def test_resume_with_workers_ignores_prefetched_batches(sources, kind):
    whole = take(make(sources[kind]), 14)
    saved = make(sources[kind], num_workers=2)
    take(saved, 5)
    resumed = make(sources[kind], num_workers=2)
    resumed.load_state_dict(saved.state_dict())
    assert_same(whole[5:9], take(resumed, 4))
    assert_same(whole[9:], take(resumed, 5))  # the same loader, iterated again
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("kind", ["stream", "indexed"])
@pytest.mark.parametrize(("before", "after", "workers"), [(2, 1, 0), (1, 4, 0), (2, 8, 0), (4, 2, 3)])
def test_resume_with_other_processes_and_workers(sources, kind, before, after, workers):
    whole = take(make(sources[kind]), 17)
    saved = [make(sources[kind], 8 // before, rank=r, world_size=before) for r in range(before)]
    for loader in saved:
        take(loader, 9)
    states = [loader.state_dict() for loader in saved]
    ranks = []
    for r in range(after):
        # its own slots and lanes give way to the saved ones
        loader = make(
            sources[kind], 8 // after, rank=r, world_size=after, num_workers=workers, num_slots=None, num_lanes=None
        )
        loader.load_state_dict(states)
        ranks.append(loader)
    assert_joined_same(whole[9:13], [take(loader, 4) for loader in ranks])
    again = make(sources[kind])
    again.load_state_dict([loader.state_dict() for loader in ranks])
    assert_same(whole[13:], take(again, 4))


def test_batches_do_not_touch_the_global_generators(sources):
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    take(make(sources["indexed"], num_workers=2), 2)
    assert (torch.rand(1), np.random.rand()) == expected


def test_states_of_other_runs_are_refused(sources):
    loader = make(sources["stream"])
    take(loader, 3)
    state = loader.state_dict()
    with pytest.raises(ValueError, match="seed 0, this run 1"):
        make(sources["stream"], seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="no whole number of global batches of 16"):
        make(sources["stream"], 16).load_state_dict(state)
    with pytest.raises(ValueError, match="num_images None, this run 37"):
        make(sources["indexed"]).load_state_dict(state)
    with pytest.raises(ValueError, match="same step"):
        make(sources["stream"]).load_state_dict([state, state | {"batch": 2}])
    with pytest.raises(ValueError, match="give the states of all processes"):
        rank = make(sources["stream"], 4, rank=1, world_size=2)
        take(rank, 2)
        make(sources["stream"]).load_state_dict(rank.state_dict())
    with pytest.raises(ValueError, match="no saved position"):
        loader.load_state_dict([])


def test_every_image_once_per_epoch(sources):
    ids = [i for batch in take(make(sources["indexed"], 8), 14) for i in batch["image_ids"]][: 3 * 37]
    epochs = [ids[:37], ids[37:74], ids[74:]]
    assert all(sorted(map(int, epoch)) == list(range(37)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    ids = [i for batch in take(make(sources["stream"], 5, num_slots=1, num_lanes=1), 60) for i in batch["image_ids"]]
    epochs = [ids[:100], ids[100:200], ids[200:]]
    assert all(len(set(epoch)) == 100 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_webdataset_and_mapped_and_generated_streams(tmp_path):
    import tarfile

    for f in range(3):
        with tarfile.open(tmp_path / f"train-{f:03d}.tar", "w") as tar:
            for i in range(11):
                for suffix, content in (("png", png(f * 11 + i)), ("cls", b"1")):
                    info = tarfile.TarInfo(f"{f}{i:05d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    web = datasets.load_dataset("webdataset", data_dir=str(tmp_path), split="train", streaming=True)
    generated = datasets.IterableDataset.from_generator(generate, gen_kwargs={"starts": [0, 10, 20]})
    mapped = web.map(lambda row: {"png": row["png"]}, remove_columns=["cls"])
    for dataset in (web, mapped, generated):
        options = {"image_column": "image"} if dataset is generated else {}
        whole = take(make(dataset, 4, num_slots=1, num_lanes=3, **options), 14)
        assert len({i for batch in whole for i in batch["image_ids"]}) in (30, 33)
        for stop in (1, 4, 9):
            saved = make(dataset, 4, num_slots=1, num_lanes=3, **options)
            take(saved, stop)
            resumed = make(dataset, 4, num_slots=1, num_lanes=3, **options)
            resumed.load_state_dict(saved.state_dict())
            assert_same(whole[stop : stop + 4], take(resumed, 4))


def generate(starts):
    for start in starts:
        for i in range(10):
            yield {"image": png(start + i)}


def test_a_dataset_of_two_thousand_million_images_costs_nothing():
    class Endless:
        def __len__(self):
            return 2**31

        def __getitem__(self, index):
            return {"image": Image.new("RGB", (16, 16), (index % 256, 0, 0))}

    assert len({i for batch in take(make(Endless()), 3) for i in batch["image_ids"]}) == 24


@pytest.mark.parametrize("item", [lambda i: Image.new("L", (16, 16), i), lambda i: (Image.new("L", (16, 16), i), 1)])
def test_plain_images_and_tuples(item):
    assert len(take(make([item(i) for i in range(9)]), 1)[0]["image_ids"]) == 8


def bad_values(share):
    rng = np.random.default_rng(0)
    bad = [b"garbage", b"GIF89a", None, png(0)[:300]]
    return [bad[i % 4] if rng.random() < share else png(i) for i in range(FILES * ROWS_PER_FILE)]


def test_bad_rows_are_replaced_counted_and_named_once(tmp_path, caplog):
    values = bad_values(0.3)
    number_bad = sum(v != png(i) for i, v in enumerate(values))
    stream = stream_of(write_parquet(tmp_path / "bad", values))
    indexed = stored_images(values)
    for dataset in (stream, indexed):
        with caplog.at_level(logging.WARNING, logger="poa_hf"):
            caplog.clear()
            loader = make(dataset)
            whole = take(loader, 40)
        named = [r.getMessage() for r in caplog.records if "could not be decoded and was replaced" in r.getMessage()]
        assert len(named) == len(set(named)) == min(20, number_bad)
        assert len(loader._bad_rows) == number_bad
        assert sum(batch["skipped"] for batch in whole) >= number_bad
        assert_joined_same(whole, [take(make(dataset, 4, rank=r, world_size=2), 40) for r in range(2)])
        resumed = make(dataset)
        saved = make(dataset)
        take(saved, 11)
        resumed.load_state_dict(saved.state_dict())
        assert_same(whole[11:15], take(resumed, 4))


@pytest.mark.parametrize("workers", [0, 2])
def test_data_without_a_single_good_row_ends_with_one_sentence(tmp_path, workers):
    dataset = stream_of(write_parquet(tmp_path / "bad", bad_values(1.0)))
    with pytest.raises(ValueError, match=r"^None of the \d+ rows tried could be decoded \(") as caught:
        take(make(dataset, num_workers=workers), 1)
    assert "\n" not in str(caught.value)


def test_more_consumers_than_files_are_told(sources, caplog):
    with caplog.at_level(logging.WARNING, logger="poa_hf"):
        PretrainingLoader(sources["stream"], ARGS, 1, GRID, rank=0, world_size=16)
    assert "12 files or row groups for 16 processes" in caplog.text


def test_small_sources_and_empty_shards(folder):
    stream = stream_of(folder).take(3)
    ids = [i for batch in take(PretrainingLoader(stream, ARGS, 4, GRID), 3) for i in batch["image_ids"]]
    assert len(set(ids)) == 3
    sparse = stream_of(folder).filter(lambda row: row["label"] == 24)
    assert len(take(PretrainingLoader(sparse, ARGS, 4, GRID), 5)) == 5
    with pytest.raises(ValueError, match="No row could be read"):
        take(PretrainingLoader(stream_of(folder).filter(lambda row: False), ARGS, 4, GRID), 1)
    with pytest.raises(ValueError, match="empty"):
        PretrainingLoader([], ARGS, 4, GRID)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"rank": 2}, {"seed": -1}, {"num_workers": -1}])
def test_impossible_numbers_are_refused(sources, options):
    with pytest.raises(ValueError, match="must be at least"):
        make(sources["indexed"], **options)


def test_a_state_that_is_refused_changes_nothing(sources):
    whole = take(make(sources["stream"]), 3)
    rank = make(sources["stream"], 4, rank=1, world_size=2, num_slots=3, num_lanes=2, block_size=5)
    take(rank, 2)
    loader = make(sources["stream"])
    before = loader.state_dict()
    with pytest.raises(ValueError, match="lacks lane"):
        loader.load_state_dict(rank.state_dict())
    assert loader.state_dict() == before
    assert_same(whole, take(loader, 3))


def _yield_images():
    yield {"image": numbered_image()}


def numbered_image():
    return Image.new("RGB", (8, 8), (7, 7, 7))


class _Torch(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield numbered_image()


@pytest.mark.parametrize(
    ("dataset", "advice"),
    [
        (
            datasets.DatasetDict(train=[], test=[]),
            r"A DatasetDict .*splits \(train, test\), as dataset\['train'\]\.",
        ),
        ("me/images", r"A str .*open it by poa_hf\.open_dataset\('me/images'\)\."),
        (_yield_images(), r"A generator .*from_generator\(function\)\."),
        (_yield_images, r"A function .*from_generator\(function\), if"),
        (_Torch(), r"A _Torch .*from_generator\(lambda: \(\{\"image\": image\} for image in dataset\)\)\."),
        (torch.utils.data.DataLoader([1]), r"A DataLoader .*as loader\.dataset\."),
        (3, r"A int cannot be read: give one split"),
    ],
)
def test_what_is_no_dataset_is_refused_with_the_line_that_makes_one(dataset, advice):
    with pytest.raises(ValueError, match=advice):
        PretrainingLoader(dataset, CropArguments(), 1, (2, 2))


def test_the_lines_of_these_messages_work():
    dataset, args = _Torch(), CropArguments(global_crop_size=8, local_crop_size=4)
    for stream in (
        datasets.IterableDataset.from_generator(lambda: ({"image": image} for image in dataset)),
        datasets.IterableDataset.from_generator(_yield_images),
    ):
        batch = next(iter(PretrainingLoader(stream, args, 1, (2, 2))))
        assert batch["global_crops"][0, 0, 0, 0] == 7
