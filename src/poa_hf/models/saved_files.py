"""The files of a saved model that may come from anybody, checked before any library opens them.

A folder or a repository on the Hub is read only as far as it holds numbers: a configuration, weights in safetensors
files, and an image processor. What would make a library run or fetch something else is refused in one sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..formatting import one_line
from ..locations import split_revision

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
# Hugging Face calls the file by the second name where it holds the processors of several kinds of input.
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_ADAPTER = "adapter_config.json"
_DOWNLOADED = [CONFIG, WEIGHTS, WEIGHTS_INDEX, "model-*-of-*.safetensors", *PROCESSORS]

_MOST_BYTES = 16 << 20  # of a configuration; the index of a model of thousands of tensors has less than one MiB
_MOST_LAYERS = 10_000
_LARGEST_NUMBER = 1 << 24
# Fields that make transformers read other files or repositories, or run code that is not part of it.
_REACHING = {
    "transformers_weights": "reads its weights from another file",
    "configuration_files": "reads its configuration from another file",
    "quantization_config": "is quantised, which takes code of other packages",
    "compression_config": "is compressed, which takes code of other packages",
    "use_pretrained_backbone": "fetches the weights of another model",
}
_CLASSES = ("id2label", "label2id")
_ATTENTION_FIELDS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
_ATTENTIONS = (None, "eager", "sdpa", "flex_attention")  # those that are part of torch
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf", ".onnx")


def saved_folder(location: str | Path) -> Path:
    """Return the folder of a saved model; the files of a repository on the Hub are downloaded into the cache.

    Args:
        location: A folder, or `namespace/name` or `name`, with or without `@revision`, on the Hub.

    Raises:
        ValueError: If there is no such folder and no repository that can be read, or it holds no configuration.
    """
    folder = Path(location).expanduser()
    if not folder.is_dir():
        repo_id, revision = split_revision(str(location))
        neither = f"{location} is neither a folder nor a model of the Hub that can be loaded"
        try:
            folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=_DOWNLOADED))
        except RevisionNotFoundError as error:
            raise ValueError(f"{repo_id} has no revision {revision!r} on the Hub: give one that exists.") from error
        except GatedRepoError as error:  # a RepositoryNotFoundError, too
            raise ValueError(
                f"{repo_id} is gated on the Hub: accept its conditions at {constants.ENDPOINT}/{repo_id}, and log in "
                "with `hf auth login`."
            ) from error
        except RepositoryNotFoundError as error:
            raise ValueError(f"{neither}: check the name, or log in with `hf auth login` if it is private.") from error
        except (OSError, HfHubHTTPError, httpx2.HTTPError, ValueError) as error:
            raise ValueError(f"{neither}, {_why_it_cannot_be_read(error)}.") from error
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{location} holds no model ({CONFIG} is missing): give a folder or repository with one.")
    return folder


def _why_it_cannot_be_read(error: Exception) -> str:
    """Return the end of a sentence that says why a repository could not be read, and what to do."""
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(cause, OfflineModeIsEnabled):
        return "as HF_HUB_OFFLINE is set and the cache does not hold it: check the name, or unset HF_HUB_OFFLINE"
    if isinstance(cause, HFValidationError):
        return "as the Hub has no such names: check the name"
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        return f"as the Hub answered with an error (status {status}): check the name, or try again later"
    if isinstance(cause, httpx2.HTTPError):
        return "as the Hub did not answer: check the name and the connection"
    return f"as it could not be downloaded ({one_line(error, 200)}): check the name and the connection"


def read_fields(path: Path, name: object = None) -> dict[str, Any]:
    """Read the fields of a JSON file.

    Args:
        path: The file.
        name: What errors call it; its path by default.

    Raises:
        ValueError: If it cannot be read, is larger than 16 MiB, or holds something else.
    """
    name = path if name is None else name
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MiB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{name} cannot be read (it is nested too deeply): give another model.") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be read ({one_line(error, 200)}): copy the file again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds a {type(content).__name__}, not the fields of a configuration.")
    return content


def read_config_fields(folder: Path, name: str | Path) -> dict[str, Any]:
    """Read the fields of a model's configuration.

    Args:
        folder: The folder of the model.
        name: What errors call the model.

    Raises:
        ValueError: If the file cannot be read; if a field, at any depth, would have the model fetched from elsewhere or
            its attention computed by code of a repository; or if a number is larger than any model has.
    """
    fields = read_fields(folder / CONFIG, f"{CONFIG} of {name}")
    for field, value in _all_fields(fields):
        if value and field in _REACHING:
            raise ValueError(
                f"{name} {_REACHING[field]} ({field} in {CONFIG}), which poa does not do: give a model that is whole "
                "and in full precision."
            )
        if field in _ATTENTION_FIELDS and value not in _ATTENTIONS:
            raise ValueError(
                f"{name} asks for the attention {one_line(value, 80)!r} ({field} in {CONFIG}), which can be code from "
                "the Hub: remove that field from the file."
            )
    check_sizes(fields, f"{CONFIG} of {name}")
    return fields


def check_sizes(fields: Mapping[str, Any], name: str) -> None:
    """Raise a ValueError if a number, or a number of layers, is larger than any model has."""
    for field, value in _all_fields(fields):
        numbers = [number for number in _flat(value) if type(number) in (int, float)]
        too_large = next((number for number in numbers if abs(number) > _LARGEST_NUMBER), None)
        layers = bool(re.search(r"layers|depth|blocks|stages", field)) and "step" not in field
        if too_large is not None and type(too_large) is int:
            raise ValueError(f"{name} has {field} {str(too_large)[:40]}, which no model has: give another model.")
        if layers and (len(numbers) > _MOST_LAYERS or sum(max(number, 0) for number in numbers) > _MOST_LAYERS):
            raise ValueError(
                f"{name} has {field} {one_line(value, 40)}, more layers than any model has: give another model."
            )


def check_weight_files(folder: Path, name: str | Path) -> list[Path]:
    """Return the safetensors files of a model's weights.

    Raises:
        ValueError: If the weights are pickled or an adapter's, are missing, or the index names files elsewhere.
    """
    if (folder / _ADAPTER).exists():
        raise ValueError(
            f"{name} holds an adapter ({_ADAPTER}), which would load another model: merge it into its base model and "
            "save that."
        )
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / WEIGHTS_INDEX).is_file():
        return [folder / file for file in _indexed_files(folder, name)]
    if others := sorted(path.name for path in folder.iterdir() if path.suffix in _OTHER_WEIGHTS):
        raise ValueError(
            f"{name} has its weights in {others[0]}, which is not read because such files can hold code: where you "
            f"trust it, load it with transformers and write it again with save_pretrained, which makes {WEIGHTS}."
        )
    raise ValueError(
        f"{name} has no weights in safetensors files ({WEIGHTS}): give a model that has them, or convert one that you "
        "trust with save_pretrained of transformers."
    )


def _indexed_files(folder: Path, name: str | Path) -> list[str]:
    content = read_fields(folder / WEIGHTS_INDEX, f"{WEIGHTS_INDEX} of {name}").get("weight_map")
    files = sorted({str(file) for file in content.values()}) if isinstance(content, dict) else []
    for file in files or [""]:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(
                f"{WEIGHTS_INDEX} of {name} names {file[:80]!r}, which is not a safetensors file of that folder: save "
                "the model again."
            )
        if not (folder / file).is_file():
            raise ValueError(f"{name} lacks {file}, which its {WEIGHTS_INDEX} names: copy the file again.")
    return files


def check_processor_fields(folder: Path, name: str | Path) -> dict[str, Any]:
    """Read the fields of a model's image processor, and check the sizes of its images; no fields if it has none.

    Raises:
        ValueError: If a file cannot be read or asks for larger images than any model takes.
    """
    path = next((folder / file for file in PROCESSORS if (folder / file).is_file()), None)
    if path is None:
        return {}
    fields = read_fields(path, f"{path.name} of {name}")
    for field, value in _all_fields(fields):
        if any(type(number) is int and abs(number) > 1 << 14 for number in _flat(value)):
            raise ValueError(
                f"{path.name} of {name} has {field} {one_line(value, 60)}, larger than the images of any model: give "
                "another model."
            )
    return fields


def _all_fields(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every field at any depth with its value; names of classes are no fields."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in _CLASSES:
                yield str(key), item
                yield from _all_fields(item, str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _all_fields(item, name)


def _flat(value: Any) -> list[Any]:
    """Return the values in nested lists; those in mappings are fields of their own."""
    if isinstance(value, list):
        return [each for item in value for each in _flat(item)]
    return [] if isinstance(value, Mapping) else [value]
