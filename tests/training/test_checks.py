"""What cannot work is refused before any work."""

import pytest

from poa_hf import PoaConfig, PoaForPreTraining, PoaTrainer

from .test_trainer import arguments, images, new_model


def test_trackers_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="report_to 'blackboard' is not a tracker: choose from aim, "):
        PoaTrainer(new_model(), arguments(tmp_path, report_to="blackboard"), images())


def test_trackers_that_are_not_installed_are_named_with_the_line_that_installs_them(tmp_path, monkeypatch):
    monkeypatch.setattr("poa_hf.training.checks.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=r"report_to 'mlflow' is not installed: pip install mlflow\."):
        PoaTrainer(new_model(), arguments(tmp_path, report_to="mlflow"), images())


def test_crops_that_the_patch_does_not_divide_are_refused(tmp_path):
    with pytest.raises(ValueError, match="local_crop_size 20 is not a multiple of 8 .pixels .*: use 16 or 24"):
        PoaTrainer(new_model(), arguments(tmp_path, local_crop_size=20), images())
    assert not list(tmp_path.iterdir())


def test_families_that_do_not_pack_crops_refuse_to(tmp_path):
    from ..conftest import GOLDEN_BACKBONES

    for family in ("swin", "resnet"):
        model = PoaForPreTraining(PoaConfig(backbone_config=GOLDEN_BACKBONES[family], num_prototypes=[8]))
        with pytest.raises(
            ValueError, match=f"A poa_{family} computes .* in passes of their own: leave pack_crops out"
        ):
            PoaTrainer(model, arguments(tmp_path, pack_crops=True, global_crop_size=128, local_crop_size=64), images())


@pytest.mark.parametrize(("grid", "warned"), [(64, True), (32, False)])
def test_position_embeddings_that_would_be_resized_are_told(tmp_path, caplog, grid, warned):
    PoaTrainer(new_model(image_size=grid), arguments(tmp_path), images())
    assert ("position embeddings are resized" in caplog.text) is warned
