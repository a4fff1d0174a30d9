"""What this system can test of others: Windows' paths, processes that are started anew, the choice of MPS."""

import json
import multiprocessing
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import PurePosixPath, PureWindowsPath

import pytest
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader

from poa_hf.data.folders import path_in_folder, path_of_uri
from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.processes import Processes
from poa_hf.training.console import device_name
from poa_hf.training.engines import new_accelerator, prepare

from .conftest import QUICKSTART, TINY
from .embedding.photos import write_photos
from .training.test_trainer import arguments, new_model

WINDOWS = ["C:\\Users\\me\\my photos", "D:\\", "\\\\server\\share\\photos", "C:\\é%20"]


@pytest.mark.parametrize("folder", WINDOWS)
def test_images_have_the_same_names_on_windows(folder):
    place = PureWindowsPath(folder)
    assert path_of_uri(place.as_uri(), PureWindowsPath) == str(place)
    for separator in "/\\":  # os.path.join leaves the slashes within a listed path
        path = f"{str(place).rstrip(chr(92))}\\cat{separator}1 a.jpg"
        assert path_in_folder(path, str(place), PureWindowsPath) == "cat/1 a.jpg"
    other = "E:\\cat\\1.jpg"
    assert path_in_folder(other, str(place), PureWindowsPath) == other == path_in_folder(other, None, PureWindowsPath)


@pytest.mark.parametrize("folder", ["/", "/data/my photos", "/data/50%25", "/data/a\\b"])
def test_images_have_the_same_names_on_other_systems(folder):
    place = PurePosixPath(folder)
    assert path_of_uri(place.as_uri(), PurePosixPath) == folder
    assert path_in_folder(str(place / "cat/1 a.jpg"), folder, PurePosixPath) == "cat/1 a.jpg"
    other = f"/elsewhere{folder}/1.jpg"
    assert path_in_folder(other, "/data/my", PurePosixPath) == other


@pytest.fixture
def mps(monkeypatch):
    """A machine with an Apple GPU, as far as Accelerate asks."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: True)
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "0")  # which Accelerate sets to 1
    PartialState._reset_state()


def test_a_run_takes_the_apple_gpu(mps, tmp_path):
    accelerator = new_accelerator(arguments(tmp_path))
    assert accelerator.device.type == "mps" and device_name(accelerator.device) == "MPS"


def test_an_evaluation_takes_the_cpu_beside_an_apple_gpu(mps):
    with Processes() as processes:  # the classifiers of an evaluation need float64, which MPS does not have
        assert processes.device == torch.device("cpu")


def test_the_model_goes_to_the_device_that_accelerate_chooses(monkeypatch, tmp_path):
    """Another device that this machine does not need to have stands in for MPS."""
    PartialState._reset_state()
    monkeypatch.setattr(PartialState, "default_device", torch.device("meta"))
    args = arguments(tmp_path)
    model, _ = prepare(new_accelerator(args), new_model(), args)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def outcomes(poa, run, photos, folder, workers: int) -> dict:
    """What three commands write, whose images are decoded by worker processes."""
    options = ["--dataset_name", photos, "--num_workers", workers]
    poa("embed", run, *options, "--size", "small", "--format", "npy", "--output", folder / "embeddings")
    tasks = "--tasks knn,corruptions --corruptions jpeg --corruption_strengths 5 --holdout 0.3 --k 1 --sizes small"
    poa("evaluate", run, *options, *tasks.split(), "--output", folder / "evaluations.json")
    training = [*TINY.split(), "--dataset_name", photos, "--output_dir", folder / "run"]
    poa("pretrain", "--config", QUICKSTART, *training, "--dataloader_num_workers", workers)
    (embeddings,) = (folder / "embeddings").glob("*.npy")
    records = json.loads((folder / "evaluations.json").read_text())
    return {
        "embeddings": embeddings.read_bytes(),
        "evaluations": [(record["task"], record["value"]) for record in records],
        "weights": (folder / "run" / "model.safetensors").read_bytes(),
    }


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")


@pytest.fixture
def run(vit_run):
    evaluation_processor(32).save_pretrained(vit_run)
    return vit_run


def test_what_worker_processes_get_can_be_sent_to_them(poa, run, photos, tmp_path, monkeypatch):
    """Processes that are started anew, as on macOS and Windows, get it pickled."""
    expected = outcomes(poa, run, photos, tmp_path / "here", 0)
    sent = set()

    def loader_of_a_copy(batches, **options):
        sent.add(type(batches).__name__)
        pickle.loads(ForkingPickler.dumps(options.pop("worker_init_fn")))
        options |= {"num_workers": 0, "prefetch_factor": None, "multiprocessing_context": None}
        return DataLoader(pickle.loads(ForkingPickler.dumps(batches)), **options)

    monkeypatch.setattr("poa_hf.data.workers.DataLoader", loader_of_a_copy)
    assert outcomes(poa, run, photos, tmp_path / "copied", 1) == expected
    assert len(sent) == 3  # of training, evaluation and embedding


@pytest.mark.slow  # each worker imports torch
@pytest.mark.timeout(900)
def test_worker_processes_that_are_started_anew_give_the_same(poa, run, photos, tmp_path):
    expected = outcomes(poa, run, photos, tmp_path / "here", 0)
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert outcomes(poa, run, photos, tmp_path / "spawned", 1) == expected
    finally:
        multiprocessing.set_start_method(usual, force=True)
