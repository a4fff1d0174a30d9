"""Ways in which the folder of a run can be malformed; each function changes a sound one."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file


def edit(path: Path, **fields) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **fields}))


def unknown_type(folder):
    edit(folder / "config.json", model_type="never_heard_of")


def empty_configuration(folder):
    (folder / "config.json").write_text("{}")


def no_configuration(folder):
    (folder / "config.json").unlink()


def nested_configuration(folder):
    (folder / "config.json").write_text("[" * 200_000)


def configuration_of_other_kinds(folder):
    edit(folder / "config.json", backbone_config=[1, 2], num_prototypes="many")


def huge_width(folder):
    backbone = json.loads((folder / "config.json").read_text())["backbone_config"]
    edit(folder / "config.json", backbone_config={**backbone, "hidden_size": 10**9})


def huge_depth(folder):
    backbone = json.loads((folder / "config.json").read_text())["backbone_config"]
    edit(folder / "config.json", backbone_config={**backbone, "num_hidden_layers": 10**9})


def many_sizes(folder):
    backbone = json.loads((folder / "config.json").read_text())["backbone_config"]
    edit(
        folder / "config.json",
        backbone_config={**backbone, "num_hidden_layers": 9000, "hidden_size": 2**19, "num_attention_heads": 2**17},
    )


def wrong_shapes(folder):
    backbone = json.loads((folder / "config.json").read_text())["backbone_config"]
    edit(folder / "config.json", backbone_config={**backbone, "patch_size": 4})


def weights_that_are_not_numbers(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["teacher.layernorm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def weights_of_a_giant(folder):
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def empty_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")


def records_of_other_kinds(folder):
    (folder / "evaluations.json").write_text('[{"model": "\\u001b[2J", "size": 3}]')
    (folder / "metrics.jsonl").write_text('{"step": "many"}\nnull\n\x00\n{"step": 1, "loss": {"a": 1}}\n')
    (folder / "training_args.json").write_text('{"learning_rate": "fast", "max_steps": [], "bf16": {}}')
    (folder / "compute.json").write_text('{"global_batch_size": "x", "parts": 3}')
    (folder / "config.yaml").write_text("dataset_name: [1, 2]\nmodel: 3\n")
    (folder / "latency-cpu-b1.json").write_text('{"measured": {"16x1": {"median_ms": "slow"}}, "device": []}')


def nested_records(folder):
    for name in ("evaluations.json", "metrics.jsonl", "training_args.json", "compute.json", "latency-cpu-b1.json"):
        (folder / name).write_text("[" * 200_000)
    (folder / "config.yaml").write_text("[" * 20_000)


def folders_in_place_of_files(folder):
    for name in ("evaluations.json", "metrics.jsonl", "config.yaml", "card.yaml", "compute.json", "sizes.json"):
        (folder / name).mkdir()


def names_for_terminals(folder):
    record = {
        "model": "\x1b[2J<script>", "size": "16x1", "task": "knn", "metric": "knn_accuracy", "value": 0.5,
        "dataset": "\x1b]0;owned\x07[x](javascript:alert(1))<img src=x onerror=alert(1)>", "test_split": "test\x1b[31m",
        "test_images": 8, "date": "2026-11-27", "train_split": "a" * 100_000, "train_images": 8,
        "settings": {"k": 10},
    }  # fmt: skip
    (folder / "evaluations.json").write_text(json.dumps([record]))
