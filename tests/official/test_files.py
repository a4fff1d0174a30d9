import io
import os
import pickle
from argparse import Namespace
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save

from poa_hf.official.files import read_weights

WEIGHTS = {"a": torch.arange(3.0), "b.c": torch.ones(2, 2)}


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "other_keys"),
    [
        (WEIGHTS, ()),
        (OrderedDict(WEIGHTS), ()),
        ({"teacher": WEIGHTS}, ()),
        ({"student": {"z": torch.zeros(1)}, "teacher": WEIGHTS, "epoch": 3}, ("student", "epoch")),
        ({"model": {"teacher": WEIGHTS, "note": "x"}, "optimizer": {"lr": 0.1}}, ("optimizer", "note")),
        ({"state_dict": WEIGHTS}, ()),
        ({**WEIGHTS, "epoch": 3}, ("epoch",)),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found_and_the_rest_is_named(tmp_path, content, other_keys, zipped):
    (tmp_path / "file.pth").write_bytes(saved(content, _use_new_zipfile_serialization=zipped))
    file = read_weights(tmp_path / "file.pth")
    assert file.weights.keys() == WEIGHTS.keys() and file.other_keys == other_keys
    assert all(torch.equal(file.weights[name], tensor) for name, tensor in WEIGHTS.items())


class Runs:
    """Unpickled, it would run a command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("where", ["whole", "teacher", "beside", "legacy", "plain pickle"])
def test_nothing_of_a_pickle_is_run(tmp_path, where):
    evil = Runs(f"touch {tmp_path / 'executed'}")
    content = {"whole": evil, "beside": {"teacher": WEIGHTS, "epoch": evil}}.get(where, {"teacher": {"a": evil}})
    contents = {
        "legacy": lambda: saved(content, _use_new_zipfile_serialization=False),
        "plain pickle": lambda: pickle.dumps(content),
    }
    (tmp_path / "evil.pth").write_bytes(contents.get(where, lambda: saved(content))())
    with pytest.raises(ValueError, match=r"evil.pth holds more than tensors.*nothing of it was run") as refusal:
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists() and str(refusal.value).count("\n") == 0
    if where != "plain pickle":
        assert "(posix.system)" in str(refusal.value)
    torch.load(tmp_path / "evil.pth", weights_only=False) if where != "plain pickle" else pickle.loads(
        (tmp_path / "evil.pth").read_bytes()
    )
    assert (tmp_path / "executed").exists()  # it is one that would have been run


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cut.pth", saved(WEIGHTS)[:700], "damaged or cut short"),
        ("stub.pth", saved(WEIGHTS)[:20], "cut.short|is no file"),
        ("legacy.pth", saved(WEIGHTS, _use_new_zipfile_serialization=False)[:-9], "damaged or cut short"),
        ("page.pth", b"<html>not found</html>", "is no file of torch.save"),
        ("empty.pth", b"", "is empty"),
        ("list.pth", saved([torch.ones(1)]), "holds a list, not weights by name"),
        ("args.pth", saved({"model": WEIGHTS, "args": Namespace(lr=1)}), r"more than tensors \(argparse.Namespace\)"),
        ("cut.safetensors", save(WEIGHTS)[:-5], "damaged, cut short, or no safetensors"),
        ("header.safetensors", save(WEIGHTS)[:30], "damaged, cut short, or no safetensors"),
        ("pickle.safetensors", saved(WEIGHTS), "damaged, cut short, or no safetensors"),
        ("empty.safetensors", b"", "is empty"),
    ],
)
def test_damaged_and_foreign_files(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} .*({words})"):
        read_weights(tmp_path / name)


def test_what_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="is a folder: give the file of weights in it"):
        read_weights(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        read_weights(tmp_path / "nothing.pth")
