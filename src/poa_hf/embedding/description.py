"""What a model and a dataset are told by, so that the embeddings of one are never continued with those of another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..evaluation.subject import Subject
from .rows import ImageRows


def described_model(model: str | Path | Subject, subject: Subject, size: str | None, hashed: bool) -> dict[str, Any]:
    source = None if isinstance(model, Subject) else _location(model)
    described = {"source": source, "name": subject.name, "size": size, "step": subject.step}
    if hashed:
        described |= {"weights": weights_hash(subject.model), "processor": _hash_of_processor(subject)}
    return described


def weights_hash(model: torch.nn.Module) -> str:
    """Return a hash of all weights of a model."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hash_of_processor(subject: Subject) -> str:
    content = json.dumps(subject.processor.to_dict(), sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def described_dataset(name: str | None, options: dict[str, Any], images: ImageRows) -> dict[str, Any]:
    return {
        "name": None if name is None else _location(name),
        # a token is for the one who has it, not for a file; the rows are the same however they are read
        "options": {each: value for each, value in options.items() if each not in ("token", "streaming")},
        "image_column": images.image_column,
        "label_column": images.label_column,
        "has_labels": images.has_labels,
        "max_images": images.limit,
        "rows": images.known_length,
        "first": _hash_of_image(images.first.image),
    }


def _location(name: str | Path) -> str:
    """Return the absolute path of a folder, or a name as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else str(name)


def _hash_of_image(image: Any) -> str:
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        content = image
    else:
        content = image.tobytes() if hasattr(image, "tobytes") else repr(image).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()
