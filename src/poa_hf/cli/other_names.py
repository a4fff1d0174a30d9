"""Options of transformers' `TrainingArguments` and of other scripts that have another name here, or none."""

_INSTEAD = {
    "batch_size": "per_device_train_batch_size",
    "dataset": "dataset_name",
    "dataset_path": "dataset_name",
    "train_dir": "dataset_name",
    "epochs": "num_train_epochs",
    "evaluation_strategy": "eval_strategy",
    "lr": "learning_rate",
    "model_name_or_path": "init_from",
    "num_epochs": "num_train_epochs",
    "num_workers": "dataloader_num_workers",
    "resume": "resume_from_checkpoint",
    "revision": "dataset_revision",
    "train_batch_size": "per_device_train_batch_size",
    "train_split": "dataset_split",
    "use_auth_token": "token",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
}
_SENTENCES = {
    **dict.fromkeys(["fp16", "mixed_precision"], "give --bf16; other precisions are set by accelerate launch"),
    **dict.fromkeys(["no_cuda", "use_cpu"], "use accelerate launch --cpu"),
    **dict.fromkeys(
        ["fsdp", "deepspeed", "ddp_backend"],
        "use accelerate launch --config_file with a file that --list_configs names",
    ),
    **dict.fromkeys(["optim", "optimizer"], "the optimizer is AdamW; --learning_rate and --adam_beta1 set it"),
    **dict.fromkeys(
        ["lr_scheduler_type", "lr_scheduler"],
        "the schedule is a cosine, which --warmup_steps, --min_learning_rate and --schedule_stretch set",
    ),
    "hub_always_push": "a push that waits is replaced by that of a newer checkpoint",
    "hub_revision": "runs are pushed to the main branch",
    "model": "give the model's fields as --model.FIELD, such as --model.num_prototypes 32 64",
}
_REFUSED = {
    "trust_remote_code": "no code of a dataset or model on the Hub is run: for a dataset that needs it, try "
    "--dataset_revision refs/convert/parquet, the copy that the Hub makes of many"
}
_IN_FILES = {"token": "a recipe keeps no secrets: set HF_TOKEN in the environment, or give --token"}


def refused(name: str, prefix: str = "--") -> str | None:
    """Say why an option that other programs have is refused by every command; None for others."""
    return _sentence(_REFUSED[name], prefix) if name in _REFUSED else None


def instead_of(name: str, prefix: str = "") -> str | None:
    """Say what to write instead of an option that users of transformers expect, as `suggest` does; None for others.

    Args:
        name: The option as it was written, without leading hyphens.
        prefix: What options begin with where it was written: `--` on the command line, nothing in a file.
    """
    if name in _INSTEAD:
        return f"give {prefix}{_INSTEAD[name]}."
    if name in _IN_FILES and not prefix:
        return f"{_IN_FILES[name]}."
    return _sentence(_SENTENCES[name], prefix) if name in _SENTENCES else refused(name, prefix)


def _sentence(text: str, prefix: str) -> str:
    return f"{text if prefix else text.replace(' --', ' ')}."
