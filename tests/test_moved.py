"""Paths of the first build still work, and say where they lead."""

import sys
import warnings
from importlib import import_module

import pytest

from poa_hf import _moved


@pytest.fixture
def fresh(monkeypatch):
    """Forgets which old paths were imported."""
    for old in _moved.MODULES:
        monkeypatch.delitem(sys.modules, f"poa_hf.{old}", raising=False)


@pytest.mark.parametrize("old", _moved.MODULES)
def test_an_old_module_is_the_new_one(fresh, old):
    old, new = f"poa_hf.{old}", f"poa_hf.{_moved.MODULES[old]}"
    module = import_module(new)
    with pytest.warns(DeprecationWarning) as warned:
        found = import_module(old)
    about = [str(warning.message) for warning in warned if old in str(warning.message)]
    assert about == [f"{old} is now {new}; the old path is removed in version 0.3."]
    assert found is module or old.removeprefix("poa_hf.") in _moved.NAMES
    with warnings.catch_warnings(action="error"):  # once is enough
        assert import_module(old) is found
    public = next(name for name in vars(module) if not name.startswith("_"))
    assert getattr(found, public) is getattr(module, public)


@pytest.mark.parametrize(("module", "name"), [(m, name) for m, names in _moved.NAMES.items() for name in names])
def test_a_name_is_found_where_it_was(fresh, monkeypatch, module, name):
    new = import_module(f"poa_hf.{_moved.NAMES[module][name]}")
    if module not in _moved.MODULES:
        monkeypatch.delitem(vars(import_module(f"poa_hf.{module}")), name, raising=False)
    with pytest.warns(DeprecationWarning, match=f"poa_hf.{module}.* is now poa_hf"):
        exec(f"from poa_hf.{module} import {name} as found", namespace := {})
    assert namespace["found"] is getattr(new, name)
    with pytest.raises(ImportError):
        exec(f"from poa_hf.{module} import nothing_of_this_name", {})


def test_what_readme_docs_and_examples_imported(fresh):
    imports = """
        poa_hf.training.recipe parse_recipe
        poa_hf.training.engines whole_parameters
        poa_hf.slicing ElasticModelMixin SliceRules
        poa_hf.publishing.push PushOptions push
        poa_hf.publishing.family Family
        poa_hf.publishing.metadata card_problems
        poa_hf.models.token_grids mask_of_grid upsampled_tokens
        poa_hf.models.elastic_config ElasticConfigMixin check_depths check_width
        poa_hf.evaluation.select Budget select
        poa_hf.evaluation.knn KnnAccuracy
        poa_hf.evaluation.features class_features
        poa_hf.evaluation.costs costs
        poa_hf.elastic stage_depths
        poa_hf.data.textures TextureDataset
        poa_hf.data.decoding UndecodableImage open_image open_lazily
        poa_hf.data.crops CropArguments draw_augmentation draw_boxes multi_crop
        poa_hf.data find_image_column open_dataset open_image augment
        poa_hf.cli main pretrain run
    """
    with warnings.catch_warnings(action="ignore"):
        for line in imports.strip().splitlines():
            module, *names = line.split()
            for name in names:
                exec(f"from {module} import {name} as found", namespace := {})
                assert callable(namespace["found"])
