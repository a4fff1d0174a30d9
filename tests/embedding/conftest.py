"""Photographs and a run, to embed the ones by the other."""

import pytest
import torch

from poa_hf import PoaForPreTraining
from poa_hf.data.processor import evaluation_processor

from ..conftest import save_run, tiny_config
from .photos import write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(1)
    folder = save_run(PoaForPreTraining(tiny_config()), tmp_path_factory.mktemp("runs") / "vit")
    evaluation_processor(32).save_pretrained(folder)
    return folder
