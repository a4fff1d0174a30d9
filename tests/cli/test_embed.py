"""The command `poa embed`."""

import json

import pytest

from poa_hf import Embeddings, embed
from poa_hf.data.processor import evaluation_processor

from ..conftest import run_python
from ..embedding.photos import BROKEN, COUNT, names, write_parquet, write_photos


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


@pytest.fixture
def run(vit_run):
    evaluation_processor(32).save_pretrained(vit_run)
    return vit_run


def test_it_says_what_it_has_written(poa, run, photos, tmp_path):
    out = tmp_path / "out"
    options = (
        f"--dataset_name {photos} --output {out} --size small --num_workers 0 --rows_per_shard 4 --patches".split()
    )
    printed = poa("embed", run, *options)
    assert "10 images, 16 numbers of each, and 4 x 4 x 16 of its patches, in 3 files of" in printed
    assert "1 image could not be decoded" in printed
    assert len(Embeddings.load(out)) == COUNT - 1 and len(list(out.glob("*.parquet"))) == 3


def test_mistakes(poa, run, photos, tmp_path):
    assert "Give MODEL and --dataset_name and --output" in poa("embed", status=2)
    assert "Give --output" in poa("embed", run, "--dataset_name", photos, status=2)
    options = ["--dataset_name", photos, "--output", tmp_path / "out"]
    assert "choose from parquet, safetensors, npy" in poa("embed", run, *options, "--format", "csv", status=2)
    assert "no split 'test'" in poa("embed", run, *options, "--dataset_split", "test", status=2)
    assert not (tmp_path / "out").exists()


def test_searching(poa, run, photos, tmp_path):
    out, photo = tmp_path / "out", tmp_path / "my photo, 1.png"
    options = "--num_workers 0 --rows_per_shard 4 --label_column label".split()
    poa("embed", run, "--dataset_name", photos, "--output", out, *options)
    assert f"Written to {out}/index.html" in poa("embed", "--index", out)
    photo.write_bytes((photos / names()[8]).read_bytes())
    printed = poa("embed", "--index", out, "--query", photo, photos / names()[0], "--top", 3)
    lines = printed.splitlines()
    assert lines[0] == photo.name and lines[1].split() == ["rank", "similarity", "label", "image"]
    assert lines[2].split() == ["1", "1.0000", "dog", names()[8]] and lines[6] == "00.png"
    assert len(lines) == 2 * 6 + 1 and lines[-1] == f"Written to {out}/query.html"
    page = poa("embed", "--index", out, "--query", photo, "--output", tmp_path / "mine.html", "--top", 1)
    assert page.endswith(f"Written to {tmp_path}/mine.html\n") and (tmp_path / "mine.html").is_file()


def test_mistakes_of_a_search(poa, run, photos, tmp_path):
    assert "give their folder as --index" in poa("embed", "--query", "a.jpg", status=2)
    assert "is not a folder" in poa("embed", "--index", tmp_path / "none", status=2)
    assert "holds no embeddings" in poa("embed", "--index", photos, status=2)
    out = tmp_path / "out"
    poa("embed", run, "--dataset_name", photos, "--output", out, "--num_workers", 0)
    assert "does not exist: give --query" in poa("embed", "--index", out, "--query", tmp_path / "no.jpg", status=2)
    assert "cannot be read as an image" in poa("embed", "--index", out, "--query", photos / names()[BROKEN], status=2)


@pytest.mark.parametrize(
    "damage",
    [
        lambda manifest: [],
        lambda manifest: {},
        lambda manifest: manifest | {"model": 3},
        lambda manifest: manifest | {"rows_per_shard": 0},
        lambda manifest: manifest | {"format": "../x"},
        lambda manifest: manifest | {"images": "many"},
        lambda manifest: manifest | {"dimension": 7},
        lambda manifest: manifest | {"decoding": {"num_channels": "3", "value_range": None}},
        lambda manifest: manifest | {"dataset": manifest["dataset"] | {"options": {"trust_remote_code": "yes"}}},
        lambda manifest: manifest | {"dataset": manifest["dataset"] | {"name": ["a"]}},
        lambda manifest: manifest | {"more": 1},
    ],
)
def test_a_damaged_manifest_is_one_sentence(poa, run, photos, tmp_path, damage):
    out = tmp_path / "out"
    embed(run, photos, out)
    manifest = json.loads((out / "embeddings.json").read_text())
    (out / "embeddings.json").write_text(json.dumps(damage(manifest)))
    poa("embed", "--index", out, status=2)
    assert not (out / "index.html").exists()


@pytest.mark.parametrize("form", ["parquet", "safetensors", "npy"])
def test_a_damaged_part_is_named(poa, run, photos, tmp_path, form):
    out = tmp_path / "out"
    embed(run, photos, out, format=form, rows_per_shard=4)
    path = next(path for path in out.glob("part-00001.*") if "rows" not in path.name)
    path.write_bytes(bytes(path.stat().st_size))
    assert f"{out}/part-00001.{form} cannot be read" in poa("embed", "--index", out, status=2)


@pytest.mark.slow
@pytest.mark.parametrize("is_stream", [False, True])
def test_several_processes_write_what_one_does(poa, run, photos, tmp_path, is_stream):
    source = write_parquet(tmp_path / "tables", photos) if is_stream else photos
    options = f"--dataset_name {source} --rows_per_shard 2 --num_workers 0 --patches --batch_size 2".split()
    poa("embed", run, *options, "--output", tmp_path / "one")
    launch = "-m torch.distributed.run --standalone --nproc_per_node 3 -m poa_hf.cli embed".split()
    environment = {"ACCELERATE_USE_CPU": "true"}
    result = run_python(*launch, str(run), *options, "--output", str(tmp_path / "three"), env=environment, timeout=300)
    assert result.stdout.count("10 images") == 1
    one, three = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()}
        for name in ("one", "three")
    )
    assert one == three and len(one) == 8
    # a mistake is said once, and the processes end
    again = run_python(
        *launch, str(run), *options, "--size", "small", "--output", str(tmp_path / "three"), env=environment,
        timeout=300, check=False,
    )  # fmt: skip
    assert again.returncode != 0 and again.stderr.count("embeddings of another model") == 1
