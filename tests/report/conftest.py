"""A short run for the tests of reports."""

import pytest
import torch

from poa_hf import PoaForPreTraining, PoaTrainer, PoaTrainingArguments
from poa_hf.data.textures import TextureDataset

from ..conftest import tiny_config


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A ViT trained for 4 steps, without evaluations."""
    folder = tmp_path_factory.mktemp("report") / "run"
    torch.manual_seed(0)
    args = PoaTrainingArguments(
        output_dir=str(folder), max_steps=4, per_device_train_batch_size=4, warmup_steps=1, num_local_crops=2,
        global_crop_size=32, local_crop_size=16, dataloader_num_workers=0, masked_prediction_start_step=1,
        logging_steps=1, save_steps=4, disable_tqdm=True,
    )  # fmt: skip
    PoaTrainer(PoaForPreTraining(tiny_config()), args, TextureDataset()).train()
    return folder
