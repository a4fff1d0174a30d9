"""The command `poa embed`."""

import pytest

from poa_hf import Embeddings
from poa_hf.data.processor import evaluation_processor

from ..conftest import run_python
from ..embedding.photos import COUNT, write_parquet, write_photos


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
