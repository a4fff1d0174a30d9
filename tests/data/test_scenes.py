import numpy as np
import pytest

from poa_hf.data.scenes import SCENE_CLASSES, drawn_scenes
from poa_hf.data.textures import TEXTURE_NAMES


def test_boxes_masks_and_instances_of_a_scene_agree():
    counts = []
    for scene in drawn_scenes(30, seed=5, size=64):
        image, mask, instances = (np.array(scene[name]) for name in ("image", "mask", "instances"))
        boxes, classes = scene["objects"]["bbox"], scene["objects"]["category"]
        assert image.shape == (64, 64, 3) and instances.max() == len(boxes) == len(classes)
        for number, ((left, top, width, height), label) in enumerate(zip(boxes, classes, strict=True), start=1):
            rows, columns = np.nonzero(instances == number)
            assert (columns.min(), rows.min()) == (left, top)
            assert (columns.max() + 1, rows.max() + 1) == (left + width, top + height)
            assert set(mask[instances == number]) == {label + 1}
            assert len(np.unique(image[instances == number], axis=0)) > 20  # a texture
        assert len(np.unique(image[instances == 0], axis=0)) == 1  # the ground
        assert (mask > 0).tolist() == (instances > 0).tolist()
        counts.append(len(boxes))
    assert set(counts) == {1, 2, 3, 4}
    assert SCENE_CLASSES == ("ground", *TEXTURE_NAMES)


def test_scenes_depend_on_their_seed_and_place_alone():
    few, more, other = drawn_scenes(3, seed=1), drawn_scenes(6, seed=1), drawn_scenes(3, seed=2)
    assert few[2] == more[2] and few[0] != other[0]
    with pytest.raises(ValueError, match="at least 1 image of 32 pixels"):
        drawn_scenes(1, size=16)
