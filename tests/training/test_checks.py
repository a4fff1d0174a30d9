"""What cannot work is refused before any work."""

import pytest

from poa_hf import PoaTrainer

from .test_trainer import arguments, images, new_model


def test_trackers_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="report_to 'blackboard' is not a tracker or not installed"):
        PoaTrainer(new_model(), arguments(tmp_path, report_to="blackboard"), images())


def test_crops_that_the_patch_does_not_divide_are_refused(tmp_path):
    with pytest.raises(ValueError, match="local_crop_size 20 is not a multiple of 8 .pixels .*: use 16 or 24"):
        PoaTrainer(new_model(), arguments(tmp_path, local_crop_size=20), images())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("grid", "warned"), [(64, True), (32, False)])
def test_position_embeddings_that_would_be_resized_are_told(tmp_path, caplog, grid, warned):
    PoaTrainer(new_model(image_size=grid), arguments(tmp_path), images())
    assert ("position embeddings are resized" in caplog.text) is warned
