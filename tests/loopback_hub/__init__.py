"""A small Hub on 127.0.0.1 for tests: the endpoints that `huggingface_hub`, `transformers` and `datasets` call to
create, upload, list and download, with the Hub's status codes and error headers, in memory, able to fail as asked."""

from .faults import Fault
from .hub import LoopbackHub
from .repositories import Repo

__all__ = ["Fault", "LoopbackHub", "Repo"]
