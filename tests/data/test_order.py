"""Which row fills which position."""

import dataclasses

import numpy as np
import pytest

from poa_hf.data.crop_arguments import CropArguments
from poa_hf.data.order import BatchPlan, permuted_index
from poa_hf.data.rows import IndexedImages


def plans(batch_size: int, world_size: int, **lanes) -> list[BatchPlan]:
    images = IndexedImages(list(range(9)))
    return [
        BatchPlan(images, CropArguments(), batch_size, (4, 4), rank, world_size, 0, **lanes)
        for rank in range(world_size)
    ]


@pytest.mark.parametrize(("batch_size", "world_size", "num_lanes"), [(4, 1, 4), (2, 3, 4), (8, 2, 3), (1, 7, 7)])
def test_lanes_fill_each_position_once_and_processes_read_the_lanes_of_theirs(batch_size, world_size, num_lanes):
    every = plans(batch_size, world_size, num_slots=2, num_lanes=num_lanes)
    positions = [position for lane in range(num_lanes) for position in every[0].positions_of_lane(lane)]
    assert positions == list(range(batch_size * world_size))
    assert [position for plan in every for position in plan.positions] == positions
    for plan in every:
        read = [position for lane in plan.lanes_of_slot(1) for position in plan.positions_of_lane(lane)]
        assert set(plan.positions) <= set(read)
        assert all(set(plan.positions_of_lane(lane)) & set(plan.positions) for lane in plan.lanes_of_slot(1))


def test_a_plan_does_not_change():
    (plan,) = plans(4, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.num_lanes = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.images = IndexedImages([1])


@pytest.mark.parametrize("length", [1, 2, 3, 10, 64, 1000, 4097])
def test_permuted_index_is_a_permutation(length):
    once, again = (permuted_index(0, epoch, length, np.arange(length)) for epoch in (0, 1))
    assert sorted(once) == sorted(again) == list(range(length))
    if length > 9:
        assert not np.array_equal(once, again)
        # no trend: the mean displacement of a random permutation is a third of the length
        assert length > 60 or abs(np.abs(once - np.arange(length)).mean() / length) < 0.7
    if length >= 1000:
        assert np.abs(once - np.arange(length)).mean() / length == pytest.approx(1 / 3, abs=0.03)
