import pytest

from poa_hf import SubNetwork
from poa_hf.publishing import release
from poa_hf.publishing.release import Release


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


def test_files_of_a_size(vit_run, tmp_path, monkeypatch):
    monkeypatch.setattr("poa_hf.publishing.card.cards.draw_sizes", lambda *arguments: "")  # pictures take time
    files = Release.from_run(vit_run, "small", "me").size_files(SubNetwork(16, 1), tmp_path)
    assert set(files.model) == {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert set(files.documents) == {"README.md"}
    assert files.num_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
