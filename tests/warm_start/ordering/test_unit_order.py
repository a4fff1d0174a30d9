"""`order_units`: what it reads, that it finds what matters, and that the order can be kept."""

import copy

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import BatchFeature

from poa_hf import PoaForPreTraining, PoaTrainingArguments, UnitOrder, order_units
from poa_hf.models.unit_groups import UnitGroup
from poa_hf.warm_start.ordering.importance import unit_importance

from ...conftest import tiny_config

CROPS = PoaTrainingArguments(global_crop_size=32, image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4])


@pytest.fixture
def model() -> PoaForPreTraining:
    model = PoaForPreTraining(tiny_config())
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture
def pictures() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(each) for each in pixels]


def as_pixels(pictures: list[Image.Image]) -> torch.Tensor:
    """The same images as normalised pixels, by NumPy."""
    pixels = (np.stack([np.asarray(each) for each in pictures]) / 255 - CROPS.image_mean) / CROPS.image_std
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float()


def test_units_without_which_features_change_most_come_first(model):
    """The importance is the mean square of the features' change, here by leaving out each unit a little."""
    pixels = torch.randn(3, 3, 32, 32)
    teacher = model.teacher.double().eval()
    last = teacher.encoder.layer[1].mlp.fc2

    @torch.no_grad()
    def features() -> torch.Tensor:
        return torch.nn.functional.normalize(teacher(pixels.double()).pooler_output, dim=-1)

    whole, changes = features(), []
    for unit in range(last.in_features):
        weight = last.weight.detach().clone()
        with torch.no_grad():
            last.weight[:, unit] *= 1 - 1e-4
        changes.append(((features() - whole) / 1e-4).square().sum().item() / len(pixels))
        with torch.no_grad():
            last.weight.copy_(weight)
    exact = torch.tensor(changes)
    many = pixels.repeat(600, 1, 1, 1)  # each in many random directions
    found = unit_importance(model.teacher.float(), many.split(600))["encoder.layer.1.hidden"]
    # the mean square of 1,800 normal variables has a standard error of 3.3 %, more if one image counts most
    torch.testing.assert_close(found / exact.double(), torch.ones_like(found), atol=0, rtol=0.25)
    order = list(order_units(model, many, len(many), batch_size=600).orders["encoder.layer.1.hidden"])
    assert exact[order][:32].sum() > 0.97 * exact.sort(descending=True).values[:32].sum()


def test_a_unit_that_nothing_reads_comes_last(model):
    with torch.no_grad():
        model.teacher.encoder.layer[0].mlp.fc2.weight[:, 5] = 0
        model.teacher.encoder.layer[2].attention.o_proj.weight[:, 8:16] = 0  # head 1
    orders = order_units(model, torch.randn(4, 3, 32, 32)).orders
    assert orders["encoder.layer.0.hidden"][-1] == 5 and orders["encoder.layer.2.heads"][-1] == 1
    assert model.config.units_ordered_on == 4


def test_images_in_any_form_give_one_order(model, pictures):
    def order(images, **options) -> UnitOrder:
        return order_units(copy.deepcopy(model), images, crops=CROPS, **options)

    expected = order(as_pixels(pictures))
    assert expected.num_images == 6
    for batches in (
        DataLoader(as_pixels(pictures), batch_size=4),
        (each for each in as_pixels(pictures)),
        [{"pixel_values": as_pixels(pictures)}].__iter__(),
        iter([BatchFeature({"pixel_values": as_pixels(pictures)})]),  # as image processors give it
    ):
        assert order(batches).orders == expected.orders
    # a sample of a dataset comes in another order, so its random directions differ
    rows = datasets.Dataset.from_dict({"image": pictures}, features=datasets.Features({"image": datasets.Image()}))
    sampled = order(pictures, seed=3)
    for images in (
        rows,
        rows.to_iterable_dataset(),
        iter(pictures),
        [{"image": each, "label": 1} for each in pictures],
    ):
        found = order(images, seed=3)
        assert found.num_images == 6
        if not isinstance(images, datasets.IterableDataset):  # which is shuffled by blocks
            assert found.orders == sampled.orders
    assert order(rows, num_images=4).num_images == 4


def test_the_order_is_kept_and_fits_only_its_model(model, tmp_path):
    before = copy.deepcopy(model)
    order = order_units(model, torch.randn(2, 3, 32, 32), seed=7)
    order.save(tmp_path / "order.json")
    again = UnitOrder.load(tmp_path / "order.json")
    assert (again.orders, again.num_images, again.seed) == (order.orders, 2, 7)
    again.apply(before)
    for (name, ours), theirs in zip(before.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    other = PoaForPreTraining(tiny_config(num_prototypes=[8]))
    one = next(iter(order.orders))
    for orders, message in (
        ({one: order.orders[one]}, "other groups"),
        (order.orders | {one: (0, *order.orders[one][1:-1], 0)}, "each of its 32 units once"),
    ):
        weights = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=message):
            UnitOrder(orders).apply(other)
        assert all(torch.equal(weights[name], tensor) for name, tensor in other.state_dict().items())
    (tmp_path / "order.json").write_text('{"orders": [1]}')
    with pytest.raises(ValueError, match=r"order\.json holds no order of units"):
        UnitOrder.load(tmp_path / "order.json")


def test_what_is_normalised_together_stays_together():
    group = UnitGroup("channels", 6, (), together=2)
    # runs (0, 1), (2, 3), (4, 5) with sums 3, 7, 5
    assert group.order_by(torch.tensor([1.0, 2.0, 5.0, 2.0, 5.0, 0.0])) == [2, 3, 4, 5, 1, 0]
    with pytest.raises(ValueError, match="parts units"):
        group.check_order([0, 2, 1, 3, 4, 5])


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "empty"),
        (iter([]), {}, "empty"),
        (torch.zeros(0, 3, 32, 32), {}, "no images"),
        (torch.zeros(2, 4, 32, 32), {}, r"\(2, 4, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), {}, "as floats"),
        (torch.full((2, 3, 32, 32), torch.nan), {}, "not finite"),
        (torch.zeros(2, 3, 32, 32), {"num_images": 0}, "num_images 0"),
        ("textures", {}, "textures"),
    ],
)
def test_images_that_cannot_be_used_change_nothing(model, images, options, message):
    weights = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        order_units(model, images, **options)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert model.config.units_ordered_on is None
