"""What is published is used by other processes: by transformers alone, by poa_hf, by datasets; and a push that is
killed is finished by another one."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from huggingface_hub import HfApi

from poa_hf import PoaForPreTraining
from poa_hf.hub.client import Hub
from poa_hf.publishing.push import PushOptions, push
from poa_hf.publishing.release import Release

from ..conftest import golden_model, run_python, save_run
from ..loopback_hub import LoopbackHub
from ..test_contract import tiny

SUPERNET = "me/poa-vit-w32-d3-supernet"
SIZES = {"vit": "small,24x2,large", "swin": "tiny", "resnet": "8x1-1-2-1", "dinov2_registers": "base"}


@pytest.fixture(scope="module")
def runs(vit_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    others = {family: save_run(golden_model(family), folder / family) for family in ("swin", "resnet")}
    others["dinov2_registers"] = save_run(tiny("dinov2_registers", hidden_size_step=20), folder / "dinov2_registers")
    return {"vit": vit_run, **others}


@pytest.fixture(scope="module")
def published(runs):
    """A Hub with sizes of all families."""
    with LoopbackHub() as hub:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
            patch.setattr("poa_hf.publishing.card.cards.draw_sizes", lambda *arguments: "")  # pictures take time
            api = HfApi(hub.endpoint, token="hf_me")
            for family, run in runs.items():
                release = Release.from_run(run, SIZES[family], "me", supernet=family == "vit")
                push(release, Hub(api), PushOptions(collection=family == "vit"), tell=lambda line: None)
        hub.clear()
        yield hub


WITHOUT_POA_HF = """
import sys, torch
sys.modules["poa_hf"] = None  # importing it fails
from PIL import Image
from transformers import AutoImageProcessor, AutoModel
folder, found = sys.argv[1], {}
for repo_id in sys.argv[2:]:
    model = AutoModel.from_pretrained(repo_id, trust_remote_code="resnet" in repo_id)
    pixels = AutoImageProcessor.from_pretrained(repo_id)(Image.open(folder + "/image.png"), return_tensors="pt")
    with torch.no_grad():
        found[repo_id] = pixels.pixel_values, model(**pixels).last_hidden_state
assert not any(name.startswith("poa_hf.") for name in sys.modules)
torch.save(found, folder + "/found")
"""


def test_transformers_alone_loads_every_family(published, runs, tmp_path):
    import numpy as np
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 170, 3), np.uint8)).save(tmp_path / "image.png")
    families = {family: Release.from_run(run, SIZES[family], "me") for family, run in runs.items()}
    ids = {repo_id: (family, size) for family, of in families.items() for size, repo_id in of.ids.items()}
    assert len(ids) == 6 and {"configuration_gn_resnet.py", "modeling_gn_resnet.py"} <= {
        path for (_, repo_id), repo in published.repos.items() if "resnet" in repo_id for path in repo.files()
    }
    run_python("-c", WITHOUT_POA_HF, str(tmp_path), *ids, env=published.env(tmp_path / "home"))
    found = torch.load(tmp_path / "found")
    for repo_id, (family, size) in ids.items():
        pixels, features = found[repo_id]
        with torch.no_grad():
            expected = families[family].model.teacher(pixels, sub_network=size).last_hidden_state
        assert torch.equal(features, expected), repo_id


WITH_POA_HF = """
import sys, torch
from datasets import Dataset, Image
import numpy as np, PIL.Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments, set_seed
from poa_hf import PoaForPreTraining, PoaTrainer, PoaTrainingArguments
from poa_hf.data.sources import open_dataset
folder, endpoint = sys.argv[1:]
set_seed(0)

# a dataset on the Hub
pictures = [PIL.Image.fromarray(np.full((40, 48, 3), 20 * n, np.uint8)) for n in range(12)]
data = Dataset.from_dict({"image": pictures, "label": [n % 2 for n in range(12)]}).cast_column("image", Image())
data.push_to_hub("me/pictures", max_shard_size="2KB")

# continue from the supernet, on images streamed from it
model = PoaForPreTraining.from_pretrained("me/poa-vit-w32-d3-supernet")
torch.save(model.state_dict(), folder + "/supernet")
images = open_dataset("me/pictures")
assert type(images).__name__ == "IterableDataset", type(images)
args = PoaTrainingArguments(
    output_dir=folder + "/more", max_steps=2, per_device_train_batch_size=4, global_crop_size=32, local_crop_size=16,
    num_local_crops=1, dataloader_num_workers=0, logging_steps=1,
)
PoaTrainer(model, args, train_dataset=images).train()

# fine-tune one size and push it
processor = AutoImageProcessor.from_pretrained("me/poa-vit-w16-d1-extracted")
classifier = AutoModelForImageClassification.from_pretrained("me/poa-vit-w16-d1-extracted", num_labels=2)
def prepare(batch):
    return {"pixel_values": processor(batch["image"], return_tensors="pt").pixel_values, "labels": batch["label"]}
args = TrainingArguments(
    folder + "/tuned", max_steps=2, per_device_train_batch_size=4, push_to_hub=True, hub_model_id="me/tuned",
    remove_unused_columns=False, use_cpu=True, save_strategy="no", report_to="none",
)
trainer = Trainer(classifier, args, train_dataset=data.with_transform(prepare), processing_class=processor)
trainer.train()
trainer.push_to_hub()
again = AutoModelForImageClassification.from_pretrained("me/tuned")
assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), classifier.state_dict().values()))
"""


@pytest.mark.slow
def test_continue_stream_and_fine_tune(published, vit_run, tmp_path):
    env = published.env(tmp_path / "home")
    run_python("-c", WITH_POA_HF, str(tmp_path), published.endpoint, env=env, timeout=230)
    model = PoaForPreTraining.from_pretrained(vit_run)
    state, found = model.state_dict(), torch.load(tmp_path / "supernet")
    assert state.keys() == found.keys() and all(torch.equal(state[name], found[name]) for name in state)
    more = PoaForPreTraining.from_pretrained(tmp_path / "more")
    assert not torch.equal(more.student.embeddings.cls_token, model.student.embeddings.cls_token)
    assert any("parquet" in path for path in published.repos["dataset", "me/pictures"].files())
    assert published.count("GET", "/storage/datasets/me/pictures/")  # streamed, not only named
    assert {"model.safetensors", "config.json", "preprocessor_config.json"} <= set(published.model("me/tuned").files())


PUSH = ("-m", "poa_hf.cli", "push")
TWO = ("--size", "small,24x2", "--namespace", "me")


@pytest.fixture(scope="module")
def expected(vit_run):
    """What an uninterrupted push by the command leaves."""
    with LoopbackHub() as hub:
        push_two(vit_run, hub)
        return hub.state()


def push_two(run, hub):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
        push(Release.from_run(run, "small,24x2", "me"), Hub(HfApi(hub.endpoint, token="hf_me")), tell=lambda line: None)


@pytest.mark.parametrize(
    ("end", "call", "at", "hold"),
    [
        (signal.SIGKILL, ("PUT", "/storage/me/poa-vit-w16"), 1, "after"),
        pytest.param(signal.SIGINT, ("POST", "/commit/"), 2, "after", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, ("PUT", "/storage/me/poa-vit-w16"), 1, "before", marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, ("POST", "/repos/create"), 3, "before", marks=pytest.mark.slow),
    ],
)
def test_a_push_that_was_killed_is_finished_by_the_next(vit_run, expected, tmp_path, end, call, at, hold):
    with LoopbackHub() as hub:
        fault = hub.inject(*call, at=at, hold=hold)
        env = {**os.environ, "OMP_NUM_THREADS": "1", **hub.env(tmp_path / "home")}
        process = subprocess.Popen(
            [sys.executable, *PUSH, str(vit_run), *TWO],
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert fault.reached.wait(120), process.communicate()
        process.send_signal(end)
        if end == signal.SIGINT:
            time.sleep(0.3)
            fault.release()
        printed, errors = process.communicate(timeout=60)
        if end == signal.SIGINT:
            assert process.returncode == 130 and "run the same command again to continue" in printed, printed + errors
            assert errors.strip().splitlines()[-1] == "poa: interrupted."
        fault.release()
        for repo in hub.repos.values():
            whole = expected["repos"][f"models/{repo.id}"]["main"]
            assert not repo.files() or repo.files()["model.safetensors"] == whole["model.safetensors"]
        time.sleep(0.1)
        hub.faults.clear()
        push_two(vit_run, hub)
        assert hub.state() == expected
        assert len(hub.uploads) == len(set(hub.uploads))
