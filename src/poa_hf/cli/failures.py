"""What a command says when it fails: which of several processes speaks, and torch's errors in words."""

from __future__ import annotations

import os
import re

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (\w+)|exited)")
# what gloo says of a connection; NCCL and the store have an exception of their own
_LOST_CONNECTION = re.compile(r"gloo/transport|Connection closed by peer|Connection reset by peer")
_TRAINING = ("pretrain", "resume")


def is_first_process() -> bool:
    """Return whether this is the first of the processes that a launcher has started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def is_to_speak() -> bool:
    """Return whether this process is to say what went wrong: the first to fail of those that belong together.

    The launcher's store counts them. Where there is none, the first process speaks.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return True
    from datetime import timedelta

    from torch.distributed import TCPStore

    attempt = "/".join(os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT"))
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=3))
        return store.add(f"poa_hf/{attempt}/failed", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return is_first_process()


def in_words(error: BaseException, command: str) -> str | None:
    """Return one sentence for an error that is not the program's fault, or None for any other.

    Args:
        error: What torch raised.
        command: The name of the command that failed.
    """
    text = " ".join(str(error).split())
    is_training = command in _TRAINING
    if isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(text):
        how = (
            "lower --per_device_train_batch_size (and raise --gradient_accumulation_steps), or add "
            "--gradient_checkpointing or --bf16"
            if is_training
            else "lower --batch_size, or measure smaller sizes"
        )
        return f"The memory does not suffice ({_shortened(text) or 'MemoryError'}): {how}."
    if found := _DEAD_WORKER.search(text):
        how = f"by the signal {found[2]}" if found[2] else "without a word"
        option = "--dataloader_num_workers" if is_training else "--num_workers"
        resume = ", and go on by poa resume" if is_training else ""
        return (
            f"The data worker with process id {found[1]} ended {how}, as when the memory does not suffice: lower "
            f"{option}{resume}."
        )
    if _is_lost_connection(error, text):
        return (
            "Another process of this run has ended, killed perhaps (the launcher says how): go on by poa resume with "
            "as many processes."
        )
    return None


def _is_lost_connection(error: BaseException, text: str) -> bool:
    from torch.distributed import DistError

    return isinstance(error, DistError) or bool(_LOST_CONNECTION.search(text))


def _shortened(text: str) -> str:
    """Return the first sentence of torch's message, without its place in the source."""
    text = re.sub(r"^\[.*?\] \.? ?", "", text)
    return text.partition(". ")[0][:160].rstrip(".")
