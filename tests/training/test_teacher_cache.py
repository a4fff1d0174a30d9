"""The file of a foreign teacher's features: any number of images with any ids, and failures to write it."""

import json
import os
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from poa_hf.runs.writing import WriteError
from poa_hf.training.teacher_cache import CachedTeacher

from .processes import in_processes
from .test_trainer import arguments

FILE = "teacher_features.safetensors"
TEACHER = SimpleNamespace(fingerprint="a teacher's", image_size=28, image_features=2, name="teacher")


def cache(folder, names: list[str], compute=True) -> CachedTeacher:
    """The features of these images after `start`: row i is [i, -i]. They are only read unless they may be computed."""
    made = CachedTeacher(TEACHER, [b""] * len(names), arguments(folder), Accelerator(cpu=True))
    rows = torch.arange(len(names), dtype=torch.float32)
    made._compute = lambda teacher: (names, torch.stack([rows, -rows], dim=1)) if compute else pytest.fail("computed")
    made.start()
    return made


def header_of(folder) -> dict:
    content = (folder / FILE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])


@pytest.mark.parametrize(
    "names",
    [
        ["dog/1.png", "Zürich/猫 🐈.jpg", "a\nb\0c", "byte \udcff", "7"],
        [f"{'long ' * 5000}{index}" for index in range(9)],
        ["only"],
    ],
    ids=["of any letters", "long", "one"],
)
def test_ids_are_those_that_were_computed(tmp_path, names):
    cache(tmp_path, names)
    features = cache(tmp_path, names, compute=False)({"image_ids": names[::-1]}, None).images
    expected = [[index, -index] for index in reversed(range(len(names)))]
    assert features.tolist() == expected * 2


def test_the_header_does_not_grow_with_the_images(tmp_path):
    cache(tmp_path, [f"{'class' * 40}/{index}.jpg" for index in range(5000)])
    header = header_of(tmp_path)  # of which safetensors takes 100 MB
    assert len(json.dumps(header)) < 1000 and header["features"]["shape"] == [5000, 2]


def test_ids_as_text_are_still_read(tmp_path):
    cache(tmp_path, ["a", "b"])
    key = header_of(tmp_path)["__metadata__"]["key"]
    metadata = {"key": key, "image_ids": json.dumps(["é", "b"])}
    save_file({"features": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}, tmp_path / FILE, metadata)
    assert cache(tmp_path, ["a", "b"], compute=False)({"image_ids": ["b", "é"]}, None).images.tolist()[:2] == [
        [3.0, 4.0],
        [1.0, 2.0],
    ]


def fail_to_write(folder: str) -> None:
    with pytest.raises(
        WriteError, match=rf"{FILE} cannot be written \(No such file or directory; .* free\): make room"
    ):
        cache(os.path.join(folder, "missing"), ["a", "b"])


def test_a_failure_to_write_is_one_sentence(tmp_path):
    fail_to_write(str(tmp_path))


@pytest.mark.slow
def test_all_processes_learn_of_a_failure_to_write(tmp_path):
    in_processes(2, fail_to_write, str(tmp_path))
