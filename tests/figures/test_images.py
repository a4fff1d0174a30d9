import importlib
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from poa_hf.figures import images as plots
from poa_hf.figures.patches import (
    attention_maps,
    patch_features,
    patch_pca,
)

from .models import elastic, images


def saved(figure, path) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that does not fit warns
        figure.savefig(path, dpi=60)
    picture = np.asarray(Image.open(path).convert("RGBA"))
    assert picture[..., 3].max() == 255 and (picture[..., 3] == 0).mean() > 0.005  # drawn on nothing
    return picture


def test_figures_of_three_sizes(tmp_path):
    model = elastic("vit")
    pixels = images(model, 3)
    sizes = [str(model.config.space.smallest), "64x2", "64x3"]
    features = {size: patch_features(model, pixels, size) for size in sizes}
    maps = {size: attention_maps(model, pixels, size) for size in sizes}
    attention = plots.attention_figure(pixels, maps)
    colours = {size: patch_pca(features[size], reference=features["64x3"]) for size in sizes}
    pca = plots.pca_figure(pixels, colours)
    for figure, name in ((attention, "attention"), (pca, "pca")):
        assert len(figure.axes) == 3 * 4
        assert [axes.get_title() for axes in figure.axes[:4]] == ["image", *sizes]
        saved(figure, tmp_path / f"{name}.png")
    shown = attention.axes[2].images[0].get_array()
    np.testing.assert_allclose(shown, maps["64x2"][0].mean(0))
    np.testing.assert_allclose(pca.axes[7].images[0].get_array(), colours["64x3"][1])
    mean, std = (np.array(v) for v in ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3]))
    own = plots.pca_figure(pixels, colours, list(mean), list(std)).axes[4].images[0].get_array()
    np.testing.assert_allclose(own, np.clip(pixels[1].permute(1, 2, 0).numpy() * std + mean, 0, 1), atol=1e-6)


def crops(num_images: int = 3, num_local: int = 5) -> dict:
    masks = torch.zeros(2 * num_images, 16, dtype=torch.bool)
    masks[num_images, [1, 4]] = True  # the second view of the first image
    return {
        "global_crops": torch.rand(2 * num_images, 3, 32, 32),
        "local_crops": torch.rand(num_local * num_images, 3, 16, 16),
        "masks": masks,
    }


def test_crops_and_masks_are_where_they_belong(tmp_path):
    batch = crops()
    figure = plots.crops_figure(batch, 2, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    canvas = figure.axes[0].images[0].get_array()
    saved(figure, tmp_path / "crops.png")

    def shown(top, left, side):
        assert (canvas[top : top + side, left : left + side, 3] == 1).all()
        return canvas[top : top + side, left : left + side, :3].transpose(2, 0, 1)

    step, local_step, row = 32 + 2, 16 + 2, 2 * (16 + 2)  # local crops in two lines, a little higher than a global one
    for image in range(2):
        for view in range(2):
            expected = batch["global_crops"][3 * view + image]
            np.testing.assert_allclose(shown(row * image, step * view, 32), expected, atol=1e-6)
        for view in range(5):
            column, line = divmod(view, 2)
            place = row * image + local_step * line, 2 * step + local_step * column
            np.testing.assert_allclose(shown(*place, 16), batch["local_crops"][3 * view + image], atol=1e-6)
    squares = [path.get_extents().bounds for path in figure.axes[0].collections[0].get_paths()]
    assert squares == [(step + 8, 0, 8, 8), (step, 8, 8, 8)]


def test_crops_of_a_loaders_batch_are_coloured_as_in_training(tmp_path):
    from poa_hf.data.augmentation import augment
    from poa_hf.data.crops import CropArguments
    from poa_hf.data.loader import PretrainingLoader
    from poa_hf.data.textures import TextureDataset

    args = CropArguments(global_crop_size=32, local_crop_size=16, num_local_crops=2)
    batch = next(iter(PretrainingLoader(TextureDataset(seed=1), args, batch_size=3, mask_grid=(4, 4))))
    canvas = plots.crops_figure(batch).axes[0].images[0].get_array()
    expected = augment(batch["global_crops"], batch["global_augmentation"], (0, 0, 0), (1, 1, 1))[4]
    np.testing.assert_allclose(canvas[36:68, 34:66, :3].transpose(2, 0, 1), expected.clamp(0, 1), atol=0.003)
    for missing in ({"masks"}, {"local_crops"}, {"masks", "local_crops"}):
        part = {name: value for name, value in batch.items() if name not in missing}
        figure = plots.crops_figure(part, 1)
        assert len(figure.axes[0].texts) == 2 + ("local_crops" not in missing)
        saved(figure, tmp_path / "part.png")


def test_figures_refuse_what_does_not_fit(monkeypatch):
    batch = crops()
    with pytest.raises(ValueError, match="6 global and 14 local crops do not form a batch: give two"):
        plots.crops_figure(batch | {"local_crops": batch["local_crops"][1:]})
    with pytest.raises(ValueError, match="0 global and 15 local crops do not form a batch"):
        plots.crops_figure({"local_crops": batch["local_crops"]})
    with pytest.raises(ValueError, match=r"masks have shape \(6, 15\), which does not cover 6 crops of 32 x 32"):
        plots.crops_figure(batch | {"masks": batch["masks"][:, 1:]})
    pixels = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"small has shape \(3, 4, 2, 2\) for 2 images: give maps"):
        plots.attention_figure(pixels, {"small": torch.rand(3, 4, 2, 2)})
    with pytest.raises(ValueError, match=r"nothing to draw: give colours \(B, h, w, 3\) by name"):
        plots.pca_figure(pixels, {})
    with pytest.raises(ValueError, match=r"Images have shape \(2, 8, 8\): give"):
        plots.attention_figure(pixels[:, 0], {"small": torch.rand(2, 4, 2, 2)})

    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"] + ["matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    without = importlib.reload(plots)  # which needs no matplotlib
    for figure in (
        lambda: without.attention_figure(pixels, {"small": torch.rand(2, 4, 2, 2)}),
        lambda: without.crops_figure(crops()),
    ):
        with pytest.raises(ValueError, match=r"Figures need matplotlib: install poa_hf\[plots\]\."):
            figure()
