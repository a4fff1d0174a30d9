"""The distributions that are published: their metadata, and what the wheel holds."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from .conftest import ROOT, TINY, run_python

needed = pytest.mark.skipif(
    any(importlib.util.find_spec(tool) is None for tool in ("build", "twine", "setuptools")),
    reason="needs build, twine and setuptools",
)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The source distribution and the wheel that is built from it."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    built = tmp_path_factory.mktemp("built")
    run_python("-m", "build", "--no-isolation", "--outdir", str(built), str(tree))
    return sorted(built.iterdir())


@pytest.fixture(scope="module")
def unpacked(distributions, tmp_path_factory):
    (wheel,) = [path for path in distributions if path.suffix == ".whl"]
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def poa(folder: Path, *arguments: str, cwd: Path) -> str:
    return run_python("-m", "poa_hf.cli", *arguments, env={"PYTHONPATH": str(folder)}, cwd=cwd).stdout


@needed
def test_metadata_are_as_the_index_wants_them(distributions):
    assert [path.name.endswith((".tar.gz", ".whl")) for path in distributions] == [True, True]
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, distributions)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout.count("PASSED") == 2, result.stdout + result.stderr


@needed
def test_the_wheel_holds_all_files_of_the_package(unpacked):
    package = ROOT / "src" / "poa_hf"
    files = {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
    files |= {Path("configs") / path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.*")}
    files = {path for path in files if "__pycache__" not in path.parts and (package / path).is_file()}
    assert Path("configs/accelerate/slurm.sh") in files and Path("py.typed") in files
    for path in files:
        assert (unpacked / "poa_hf" / path).read_bytes() == (package / path).read_bytes(), path


@needed
def test_recipes_travel(unpacked, tmp_path):
    printed = poa(unpacked, "pretrain", "--list_configs", cwd=tmp_path)
    assert str(unpacked / "poa_hf" / "configs" / "accelerate" / "fsdp2.yaml") in printed and "vit_large " in printed


@needed
@pytest.mark.slow
def test_a_run_by_the_unpacked_wheel(unpacked, tmp_path):
    poa(unpacked, "pretrain", "--config", "quickstart", *TINY.split(), "--output_dir", "run", cwd=tmp_path)
    assert (tmp_path / "run" / "model.safetensors").exists()
