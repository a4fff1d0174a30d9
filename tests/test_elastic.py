import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest

from poa_hf import ElasticSpace, PoaResNetConfig, PoaSwinConfig, PoaViTConfig, SubNetwork
from poa_hf.elastic import block_indices, stage_depths


def test_sub_network_is_a_value():
    assert SubNetwork(384, 12) == SubNetwork(384, (12,)) == SubNetwork.parse("384x12")
    assert hash(SubNetwork(384, 12)) == hash(SubNetwork(384, (12,)))
    assert str(SubNetwork(96, (2, 2, 6, 2))) == "96x2-2-6-2"
    assert SubNetwork.parse(str(SubNetwork(96, (2, 2, 6, 2)))) == SubNetwork(96, (2, 2, 6, 2))
    assert SubNetwork(384, 24) < SubNetwork(448, 12) < SubNetwork(448, 13)


@pytest.mark.parametrize("text", ["384", "x12", "384x", "384x12-", "384 by 12", "0x12", "384x0"])
def test_malformed_sizes_are_refused(text):
    with pytest.raises(ValueError):
        SubNetwork.parse(text)


@pytest.mark.parametrize(
    "values", [("384", "12"), (384.7, 12), (384, ()), (0, 12), (384, (12, -1)), (True, 2), (384, "12")]
)
def test_values_that_are_no_sizes_are_refused(values):
    with pytest.raises(ValueError, match="width and depths are positive integers"):
        SubNetwork(*values)


def test_depths_are_any_sequence_of_whole_numbers():
    expected = SubNetwork(96, (2, 3, 4))
    assert SubNetwork(96, range(2, 5)) == SubNetwork(np.int64(96), np.arange(2, 5)) == expected


def test_steps_seeds_and_processes_are_counted_from_nought():
    space = PoaViTConfig().space
    for arguments, name in (((-1,), "step"), ((0, -1), "seed"), ((0, 0, -1), "rank"), ((0.5,), "step")):
        with pytest.raises(ValueError, match=f"^{name} is "):
            space.sub_network_at(*arguments)


def test_published_vit_space():
    space = PoaViTConfig().space
    assert len(space) == len(set(space)) == 143
    assert len(space.bag) == 573
    assert space.smallest == SubNetwork(384, 12) and space.full == SubNetwork(1024, 24)
    assert {name: str(size) for name, size in space.named.items()} == {
        "small": "384x12",
        "base": "768x12",
        "large": "1024x24",
    }
    assert SubNetwork(448, 13) in space and SubNetwork(400, 13) not in space and "448x13" not in space


def test_bag_weights_fall_linearly_on_both_axes():
    counts = Counter(PoaViTConfig().space.bag)
    for i, width in enumerate(range(384, 1025, 64)):
        for j, depth in enumerate(range(12, 25)):
            weight = (3 - 2 * i / 10) * (3 - 2 * j / 12)
            assert abs(counts[SubNetwork(width, depth)] - weight) <= 0.5 + 1e-9


def test_sampling_empties_the_bag_without_the_full_network():
    space = PoaViTConfig().space
    expected = Counter(space.bag)
    del expected[space.full]
    period = sum(expected.values())
    for bag in range(2):
        drawn = Counter(space.sub_network_at(step, seed=3) for step in range(bag * period, (bag + 1) * period))
        assert drawn == expected


def test_sampling_depends_on_step_seed_and_rank_alone():
    space = PoaViTConfig().space

    def order(**kwargs):
        return [space.sub_network_at(step, **kwargs) for step in range(50)]

    assert order(seed=1, rank=2) == list(reversed([space.sub_network_at(s, seed=1, rank=2) for s in range(49, -1, -1)]))
    assert order(seed=1) != order(seed=2)
    assert order(seed=1, rank=0) != order(seed=1, rank=1)
    second_bag = [space.sub_network_at(step + 572) for step in range(50)]
    assert second_bag != order()


def test_a_space_of_one_draws_its_only_size():
    space = ElasticSpace(widths=(64,), depths=((4,),))
    assert len(space) == 1 and space.sub_network_at(7) == space.full == space.smallest


@pytest.mark.parametrize(
    "config",
    [PoaViTConfig(), PoaSwinConfig(), PoaResNetConfig()],
    ids=lambda config: config.family,
)
def test_candidates_are_spread_evenly_and_nested(config):
    space = config.space
    scale = [max(axis) - min(axis) or 1 for axis in zip(*((s.width, *s.depths) for s in space), strict=True)]
    places = {s: np.array([s.width, *s.depths]) / scale for s in space}
    previous: set[SubNetwork] = set()
    for count in (2, 3, 9, 16, 30, len(space)):
        chosen = dataclasses.replace(space, num_candidates=count).candidates
        assert len(chosen) == len(set(chosen)) == count and {space.smallest, space.full} <= set(chosen) <= set(space)
        assert previous <= set(chosen)
        previous = set(chosen)
        # no size is farther from its nearest candidate than the two closest candidates are from each other
        apart = min(np.linalg.norm(places[a] - places[b]) for a, b in itertools.combinations(chosen, 2))
        assert max(min(np.linalg.norm(places[s] - places[c]) for c in chosen) for s in space) <= apart + 1e-9
    assert dataclasses.replace(space, num_candidates=len(space)).candidates == space.candidates == tuple(space)


def test_only_candidates_are_trained_as_often_as_their_weights_say():
    space, few = PoaViTConfig().space, PoaViTConfig(num_candidates=16).space
    assert list(few) == list(space) and SubNetwork(448, 13) in few and few.named == space.named
    entries = Counter(space.bag)
    assert Counter(few.bag) == {size: entries[size] for size in few.candidates}
    period = len(few.trained)
    assert Counter(few.sub_network_at(step) for step in range(period)) == Counter(few.trained)
    assert few.full not in few.trained and space.full not in space.trained


def test_what_is_no_candidate_is_said_and_stands_for_nothing():
    few = PoaViTConfig(num_candidates=16).space
    base = few.named["base"]
    assert base not in few.candidates and set(few.spread) <= set(few.candidates)
    assert few.untrained([few.smallest, base]) == (
        "768x12 is a slice of weights that were trained for 16 other sizes only."
    )
    assert few.untrained(few.candidates) == "" == PoaViTConfig().space.untrained([base])


@pytest.mark.parametrize("count", [2.5, float("nan"), "4", 0, True])
def test_candidates_and_students_are_counted_in_whole_numbers(count):
    space = PoaViTConfig().space
    with pytest.raises(ValueError, match="give a whole number of at least 2"):
        dataclasses.replace(space, num_candidates=count)
    with pytest.raises(ValueError, match="count is .*: give a whole number of at least 1"):
        space.sub_networks_at(0, count=count)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (1, "num_candidates is 1: give a whole number of at least 2"),
        (144, "num_candidates is 144, but there are 143 sizes: give at most as many"),
    ],
)
def test_candidates_that_cannot_be_are_refused(count, message):
    with pytest.raises(ValueError, match=message):
        PoaViTConfig(num_candidates=count).space  # noqa: B018


def test_of_several_elastic_students_one_is_the_smallest():
    space = PoaViTConfig().space
    for step in range(300):
        assert space.sub_networks_at(step, seed=1, rank=3) == (space.sub_network_at(step, seed=1, rank=3),)
        several = space.sub_networks_at(step, seed=1, count=4)
        assert several[0] == space.smallest and space.full not in several
        assert 2 <= len(set(several)) == len(several) <= 4
        assert several == space.sub_networks_at(step, seed=1, count=4) and several[0] not in several[1:]
    # the others come from a bag of their own, each as often as in it
    between = Counter(size for size in space.trained if size != space.smallest)
    drawn = Counter(space.sub_networks_at(step, count=2)[1] for step in range(sum(between.values())))
    assert drawn == between


def test_several_elastic_students_of_a_small_space_are_all_there_is():
    two = ElasticSpace((32, 64), ((2,),))
    assert two.sub_networks_at(5, count=3) == (SubNetwork(32, 2),)
    three = ElasticSpace((32, 48, 64), ((2,),))
    assert three.sub_networks_at(5, count=3) == (SubNetwork(32, 2), SubNetwork(48, 2))


def test_other_families_fit_the_same_value():
    swin = ElasticSpace((96, 112, 128), tuple((2, 2, depth, 2) for depth in range(6, 19)), 2, 2)
    assert len(swin) == 39 and len(swin.bag) == 89
    depths = sorted(((3, a, b, 3) for a in range(4, 9) for b in range(6, 37)), key=sum)
    resnet = ElasticSpace((64, 96, 128), tuple(depths), 1, 2)
    assert len(resnet) == 465 and len(resnet.bag) == 699


def test_resolve_names_sizes_and_refuses_others_with_the_nearest():
    space = PoaViTConfig().space
    assert space.resolve("base") == space.resolve("768x12") == space.resolve(SubNetwork(768, 12))
    with pytest.raises(
        ValueError, match=r"390x12 is not a size .*143 sizes.*384, 448.*1024.*12.*24.*nearest are 384x12"
    ):
        space.resolve("390x12")
    with pytest.raises(ValueError, match="small, base, large"):
        space.resolve("tiny")


def test_block_indices_are_spread_evenly():
    assert block_indices(24, 12) == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 23]
    assert block_indices(4, 3) == [0, 1, 3] and block_indices(5, 5) == [0, 1, 2, 3, 4] and block_indices(7, 1) == [0]
    for full in range(1, 40):
        for depth in range(1, full + 1):
            blocks = block_indices(full, depth)
            assert len(set(blocks)) == depth and blocks[0] == 0 and (depth == 1 or blocks[-1] == full - 1)
            assert np.abs(np.array(blocks) - np.linspace(0, full - 1, depth)).max() < 1


def test_spaces_that_nobody_could_list_are_refused_at_once():
    with pytest.raises(ValueError, match="make more than 100,000 choices"):
        stage_depths((1, 1, 1, 1), (250, 250, 250, 250))
    with pytest.raises(ValueError, match="1000000 widths and 1 choices of depths make more than 100,000 sizes"):
        ElasticSpace.from_axes(range(1, 1_000_001), ((2,),), 1.0, 1.0, ())
