"""What a folder of embeddings says of itself is what it can be opened by."""

import inspect
from collections import UserDict
from pathlib import Path

import numpy as np
import pytest

from poa_hf import embed, load_subject, open_dataset

from .photos import BROKEN, COUNT, names, write_parquet

OPTIONS = [
    {"split": "train[:5]"},
    {"config_name": "few"},
    {"streaming": False},
    {"data_dir": Path("tables")},
    {"data_files": (Path("tables") / "*-00000-*", "tables/*-00002-*")},
    {"revision": "main"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_what_opens_a_dataset_can_be_read_again(run, photos, tmp_path, monkeypatch, options):
    def of_the_hub(name, revision=None, **others):
        return open_dataset(name, **others)

    if "revision" in options:  # which a local folder has not
        monkeypatch.setattr("poa_hf.embedding.embed.open_dataset", of_the_hub)
    write_parquet(tmp_path / "data" / "tables", photos)
    if "config_name" in options:
        card = "---\nconfigs:\n- config_name: few\n  data_files: tables/*-00001-*\n---\n"
        (tmp_path / "data" / "README.md").write_text(card)
    for _ in range(2):  # and once more, as there is nothing to do
        found = embed(run, tmp_path / "data", tmp_path / "out", label_column="n", dataset_options=options)
    rows = {"split": range(5), "config_name": range(4, 8), "data_files": [*range(4), *range(8, 11)]}
    wanted = rows.get(next(iter(options)), range(COUNT))
    assert found.labels == [row for row in wanted if row != BROKEN]
    described = found.manifest.dataset["options"]
    assert "streaming" not in described  # the rows are the same
    assert described.get("data_dir") in (None, "tables")


def test_every_argument_of_a_dataset_is_tried():
    assert {name for options in OPTIONS for name in options} == {*inspect.signature(open_dataset).parameters} - {"name"}


def test_numbers_of_numpy(run, photos, tmp_path):
    found = embed(run, photos, tmp_path / "out", max_images=np.int64(8), rows_per_shard=np.int32(3))
    assert found.ids.tolist() == [row for row in range(8) if row != BROKEN] and len(found.records) == 3


def test_rows_that_are_mappings_are_those_of_dicts(run, photos, tmp_path):
    paths = [photos / name for index, name in enumerate(names()) if index != BROKEN]
    images = [{"bytes": None, "path": str(path)} for path in paths[:3]]
    images += [{"bytes": path.read_bytes(), "path": path.name} for path in paths[3:]]
    found = {}
    for form in (dict, UserDict):
        rows = [form(image=form(image), label=number) for number, image in enumerate(images)]
        found[form] = embed(run, rows, tmp_path / form.__name__, label_column="label")
    wanted, of_mappings = found.values()
    assert np.array_equal(of_mappings.features, wanted.features) and of_mappings.manifest == wanted.manifest
    assert of_mappings.labels == [*range(10)] and of_mappings.paths == wanted.paths
    assert of_mappings.paths[2:4] == [str(paths[2]), paths[3].name]


def test_what_could_not_be_read_again_is_refused_before_the_first_image(run, photos, tmp_path, monkeypatch):
    subject = load_subject(run)
    subject.name = 7
    monkeypatch.setattr("poa_hf.embedding.writer.Writer.write_missing", lambda *_: pytest.fail("it has begun"))
    with pytest.raises(ValueError, match="embeddings.json cannot say that model.name is '7': give another value.$"):
        embed(subject, photos, tmp_path / "out")
    assert not (tmp_path / "out" / "embeddings.json").exists()
