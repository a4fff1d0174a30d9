"""A small Hub on 127.0.0.1 for tests, in memory.

It has the endpoints that `huggingface_hub`, `transformers` and `datasets` call to create, upload, list and download,
answers with the Hub's status codes and error headers, and fails on request.
"""

from .faults import Fault
from .hub import LoopbackHub
from .repositories import Repo

__all__ = ["Fault", "LoopbackHub", "Repo"]
