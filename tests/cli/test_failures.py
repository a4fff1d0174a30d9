"""What is said of errors that are not the program's fault, and which of several processes says it."""

import os
import re
import signal

import pytest
import torch
from torch.utils.data import IterableDataset

from poa_hf.cli.main import run
from poa_hf.data.workers import batch_loader

from ..conftest import run_python
from ..training.processes import in_processes


class Fails(IterableDataset):
    """In a worker, ends it by a signal."""

    def __iter__(self):
        yield 1
        os.kill(os.getpid(), signal.SIGKILL)


def pretrain(argv):
    for _ in batch_loader(Fails(), 1):
        pass


def failing(error: BaseException, name: str = "pretrain"):
    def command(argv):
        raise error

    command.__name__ = name
    return command


def test_a_killed_data_worker_is_one_sentence(capsys):
    assert run(pretrain, []) == 2
    said = capsys.readouterr().err
    assert said.startswith("poa: The data worker with process id ") and said.count("\n") == 1
    assert re.search(r"ended (by the signal Killed|without a word), as when .*: lower --dataloader_num_workers", said)


@pytest.mark.parametrize(
    ("error", "name", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "resume",
         "(CUDA out of memory): lower"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried to "
                      "allocate 9 bytes. Error code 12"), "pretrain", "--per_device_train_batch_size"),
        (MemoryError(), "evaluate", "The memory does not suffice (MemoryError): lower --batch_size"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "evaluate",
         "id 7, 8 ended without a word"),
        (torch.distributed.DistBackendError("NCCL error"), "pretrain", "Another process of this run has ended"),
        (RuntimeError("[/gloo/transport/tcp/pair.cc:5] Connection closed by peer"), "resume",
         "Another process of this"),
    ],
)  # fmt: skip
def test_errors_of_torch_that_are_not_ours_are_sentences(capsys, error, name, words):
    assert run(failing(error, name), []) == 2
    said = capsys.readouterr().err
    assert said.startswith("poa: ") and words in said and said.count("\n") == 1 and said.endswith(".\n")


@pytest.mark.parametrize("error", [RuntimeError("a shape is wrong"), KeyError("x"), AssertionError()])
def test_faults_of_the_program_are_tracebacks(error):
    with pytest.raises(type(error)) as raised:
        run(failing(error), [])
    assert raised.value is error


def fails_together(folder: str, kind: type) -> None:
    torch.distributed.init_process_group("gloo")  # the store is there
    rank = os.environ["RANK"]
    descriptor = os.open(f"{folder}/{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 2)
    torch.distributed.barrier()
    try:
        status = run(failing(kind("It is wrong.")), [])
        assert status == (1 if kind is KeyError else 2)
    except KeyError:
        os.write(2, b"Traceback\n")
    torch.distributed.barrier()  # the store stays until both have asked it


@pytest.mark.parametrize(("kind", "said"), [(ValueError, "poa: It is wrong.\n"), (KeyError, "Traceback\n")])
def test_one_of_several_processes_speaks(tmp_path, kind, said):
    in_processes(2, fails_together, str(tmp_path), kind)
    assert sorted((tmp_path / name).read_text() for name in ("0", "1")) == ["", said]


def test_what_the_client_of_the_hub_says_is_said_once():
    code = """
from poa_hf.cli.main import run
def command(argv):
    from huggingface_hub.utils import logging
    logging.get_logger("huggingface_hub.http").warning("Retrying in 1s")
run(command, [])
"""
    assert run_python("-c", code).stderr.count("Retrying in 1s") == 1
