import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from poa_hf.evaluation.dense import maps
from poa_hf.evaluation.dense.maps import at_pixels, each_channel, input_size, majorities, resized, upsampled


@pytest.mark.parametrize(
    ("grid", "size"), [((3, 4), (36, 48)), ((5, 2), (31, 17)), ((1, 1), (7, 9)), ((6, 9), (4, 5)), ((2, 3), (2, 3))]
)
def test_upsampling_is_that_of_torch_also_in_slices_and_at_single_pixels(grid, size, monkeypatch):
    values = torch.randn(*grid, 3, generator=torch.Generator().manual_seed(0))
    wanted = interpolate(values.permute(2, 0, 1)[None], size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
    for at_once in (2**24, 3 * size[1] * 2):
        monkeypatch.setattr(maps, "_AT_ONCE", at_once)
        parts = list(upsampled(values, *size))
        assert [row for part, _ in parts for row in range(part.start, part.stop)] == list(range(size[0]))
        torch.testing.assert_close(torch.cat([part for _, part in parts]), wanted)
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    found = at_pixels(values, rows.flatten(), columns.flatten(), *size)
    torch.testing.assert_close(found.view_as(wanted), wanted)


@pytest.mark.parametrize(
    ("width", "height", "side", "stride", "wanted"),
    [(480, 360, 96, 8, (96, 128)), (360, 480, 96, 8, (128, 96)), (100, 100, 224, 14, (224, 224)),
     (52, 20, 96, 32, (96, 256)), (10, 10, 8, 16, (16, 16))],
)  # fmt: skip
def test_the_short_side_is_the_wanted_one_in_whole_patches(width, height, side, stride, wanted):
    assert input_size(width, height, side, stride) == wanted


@pytest.mark.parametrize(("grid", "size"), [((2, 3), (8, 12)), ((3, 2), (10, 7)), ((4, 4), (4, 4))])
def test_the_class_of_a_patch_is_that_of_most_of_its_pixels(grid, size):
    classes = np.random.default_rng(0).choice([-1, 0, 4, 900], size, p=[0.4, 0.2, 0.2, 0.2])
    votes = [[{} for _ in range(grid[1])] for _ in range(grid[0])]
    for y in range(size[0]):
        for x in range(size[1]):
            counts = votes[int((y + 0.5) * grid[0] / size[0])][int((x + 0.5) * grid[1] / size[1])]
            if classes[y, x] >= 0:
                counts[classes[y, x]] = counts.get(classes[y, x], 0) + 1
    wanted = [max(sorted(c), key=c.get) if c else -1 for row in votes for c in row]
    assert majorities(torch.from_numpy(classes), grid).tolist() == wanted


def test_arrays_of_many_channels_are_resized_like_images():
    array = np.random.default_rng(0).integers(0, 256, (10, 14, 5), dtype=np.uint8)
    small = resized(array, 5, 7, Image.Resampling.BICUBIC)
    rgb = resized(Image.fromarray(array[..., :3]), 5, 7, Image.Resampling.BICUBIC)
    assert small.shape == (5, 7, 5) and (small[..., :3] == np.asarray(rgb)).all()
    flipped = each_channel(array, lambda part: part.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert (flipped == array[:, ::-1]).all()
