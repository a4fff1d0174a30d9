import pytest

from poa_hf import PoaConfig, PoaForPreTraining, PoaResNetConfig, SubNetwork
from poa_hf.data.processor import usual_processor
from poa_hf.publishing import release
from poa_hf.publishing.release import Release

from ..conftest import golden_model, save_run


def test_the_names_of_development_versions_warn(vit_run):
    with pytest.warns(DeprecationWarning, match="Family is called Release; 0.2"):
        assert release.Family is Release
    with pytest.warns(DeprecationWarning, match="Release.of is called Release.from_run; 0.2"):
        made = Release.of(vit_run, "small", "me", license="mit")
    assert made.ids == {SubNetwork(16, 1): "me/poa-vit-w16-d1-extracted"} and made.facts.owner.license == "mit"
    with pytest.raises(AttributeError, match="has no attribute 'Families'"):
        _ = release.Families


def test_a_release_without_supernet_has_no_files_of_one(vit_run, tmp_path):
    made = Release.from_run(vit_run, "small,24x2", "me", supernet=False)
    assert made.supernet is None and list(made.ids) == [SubNetwork(16, 1), SubNetwork(24, 2)]
    with pytest.raises(ValueError, match="has no supernet"):
        made.supernet_files(tmp_path, {})


def test_sizes_may_be_written_with_spaces(vit_run):
    ids = Release.from_run(vit_run, " small, 24x2,", "me").ids
    assert list(ids) == [SubNetwork(16, 1), SubNetwork(24, 2)]
    with pytest.raises(ValueError, match="' ,' names no size: give names or sizes separated by commas, or all"):
        Release.from_run(vit_run, " ,", "me")


def test_files_of_a_size(vit_run, tmp_path, monkeypatch):
    monkeypatch.setattr("poa_hf.publishing.card.cards.draw_sizes", lambda *arguments: "")  # pictures take time
    files = Release.from_run(vit_run, "small", "me").size_files(SubNetwork(16, 1), tmp_path)
    assert set(files.model) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert set(files.documents) == {"README.md"}
    assert files.num_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_a_resnet_is_published_in_the_format_that_needs_no_remote_code(vit_run, tmp_path):
    backbone = PoaResNetConfig(depths=[1, 2, 1, 1], min_depths=[1, 1, 1, 1], base_width=64, min_base_width=32)
    model = PoaForPreTraining(PoaConfig(backbone_config=backbone, num_prototypes=[8], head_hidden_size=8))
    run = save_run(model, tmp_path / "resnet")
    of_other_channels = save_run(golden_model("resnet"), tmp_path / "other_channels")

    def format_of(run, name=None):
        return Release.from_run(run, "all", "me", format=name).format.name

    assert format_of(run) == "timm" and format_of(run, "gn_resnet") == "gn_resnet"
    assert format_of(of_other_channels) == "gn_resnet" and format_of(vit_run) == "dinov2"
    made = Release.from_run(run, "64x1-2-1-1", "me", supernet=False)
    (repo,) = made.ids.values()
    (tmp_path / "size").mkdir()
    files = made.size_files(SubNetwork(64, (1, 2, 1, 1)), tmp_path / "size")
    assert set(files.model) == {"config.json", "model.safetensors"}
    card = (tmp_path / "size" / "README.md").read_text()
    assert f'"hf-hub:{repo}"' in card and f'AutoModel.from_pretrained("{repo}")' in card

    processor = usual_processor(backbone)
    processor.do_center_crop = False  # which timm cannot hold
    processor.save_pretrained(run)
    assert format_of(run) == "gn_resnet"
