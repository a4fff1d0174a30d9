"""What a checkpoint holds: its format is read by later versions."""

import json

import torch

from poa_hf import PoaTrainer

from .test_trainer import arguments, images, new_model


def test_files_and_keys_of_a_checkpoint(tmp_path):
    PoaTrainer(new_model(), arguments(tmp_path, max_steps=2), images()).train()
    checkpoint = tmp_path / "checkpoint-2"
    assert {path.name for path in checkpoint.iterdir()} == {
        "compute.json", "config.json", "counts.json", "data_state_0.json", "model.safetensors", "optimizer.bin",
        "preprocessor_config.json", "random_states_0.pkl", "trainer_state.json",
    }  # fmt: skip
    content = {path.stem: json.loads(path.read_text()) for path in checkpoint.glob("*.json")}
    assert content["counts"] == {"global_batch_size": 4, "nonfinite_steps": 0, "in_a_row": 0}
    assert content["data_state_0"] == {"batch": 2, "seed": 0, "global_batch_size": 4, "num_images": 16}
    assert content["trainer_state"]["global_step"] == 2 and len(content["trainer_state"]["log_history"]) == 2
    optimizer = torch.load(checkpoint / "optimizer.bin", weights_only=True)
    assert {"multipliers", "is_backbone", "lr", "params"} <= optimizer["param_groups"][0].keys()


def test_nothing_of_accelerate_is_left_registered(tmp_path):
    trainer = PoaTrainer(new_model(), arguments(tmp_path, max_steps=1), images())
    trainer.train()
    (tmp_path / "plain").mkdir()
    trainer.accelerator.save_state(str(tmp_path / "plain"))  # with Accelerate's own file of the model
    assert (tmp_path / "plain" / "model.safetensors").exists() and not (tmp_path / "plain" / "config.json").exists()
