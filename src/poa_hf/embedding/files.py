"""The files of a part of the embeddings: parquet, safetensors or NumPy arrays, as bytes and back."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..formatting import one_line

FORMATS = ("parquet", "safetensors", "npy")
DTYPES = ("float32", "float16")


@dataclass
class Part:
    """Some of the embeddings, in the order of their rows.

    Args:
        ids: The numbers of the rows in the dataset, int64 (N,).
        paths: The paths of the images; None where there is none.
        features: (N, D).
        patches: (N, h, w, D); None if they were not asked for.
        labels: The labels, None where a row has none; None if they were not asked for.
    """

    ids: np.ndarray
    paths: list[str | None]
    features: np.ndarray
    patches: np.ndarray | None = None
    labels: list[Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)


def stem_of(number: int) -> str:
    """Return what the names of the files of a part begin with."""
    return f"part-{number:05d}"


def part_files(
    part: Part, number: int, file_format: str, labels_are_text: bool = False, class_names: list[str] | None = None
) -> dict[str, bytes]:
    """Return the files of a part: their content by name."""
    stem = stem_of(number)
    if file_format == "parquet":
        return {f"{stem}.parquet": _as_parquet(part, labels_are_text, class_names)}
    rows = f"{stem}.rows.jsonl", _as_lines(part)
    if file_format == "safetensors":
        from safetensors.numpy import save

        tensors = {"id": part.ids, "embedding": part.features} | (
            {} if part.patches is None else {"patches": part.patches}
        )
        return dict([rows, (f"{stem}.safetensors", save(tensors))])
    patches = {} if part.patches is None else {f"{stem}.patches.npy": _as_npy(part.patches)}
    return dict([rows]) | patches | {f"{stem}.npy": _as_npy(part.features)}


def read_part(folder: Path, number: int, file_format: str, patches: bool = False) -> Part:
    """Read a part.

    Args:
        folder: The folder of the embeddings.
        number: The number of the part.
        file_format: One of `FORMATS`.
        patches: Whether to read the features of patches, if there are any.

    Raises:
        ValueError: If a file is missing, damaged or holds something else.
    """
    stem = stem_of(number)
    try:
        if file_format == "parquet":
            part = _from_parquet(folder / f"{stem}.parquet", patches)
        elif file_format == "safetensors":
            part = _from_safetensors(folder / f"{stem}.safetensors", patches)
        else:
            part = _from_npy(folder, stem, patches)
        if file_format != "parquet":
            _add_lines(part, folder / f"{stem}.rows.jsonl")
        _check(part)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file makes each library fail in its own way
        raise ValueError(
            f"{folder / stem}.{file_format} cannot be read ({one_line(error)}): delete it, and run poa embed once more "
            "to write it again."
        ) from error
    return part


def _check(part: Part) -> None:
    if part.features.ndim != 2 or part.features.dtype.name not in DTYPES:
        raise ValueError(f"its features are {part.features.dtype} {part.features.shape}")
    if not len(part.features) == len(part.paths) == len(part.ids) == len(part.labels or part.ids):
        raise ValueError("its columns are of different lengths")


def _as_npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _as_lines(part: Part) -> bytes:
    lines = []
    for place, (index, path) in enumerate(zip(part.ids.tolist(), part.paths, strict=True)):
        line = {"id": index, "path": path}
        if part.labels is not None:
            line["label"] = part.labels[place]
        lines.append(json.dumps(line) + "\n")
    return "".join(lines).encode()


def _as_parquet(part: Part, labels_are_text: bool, class_names: list[str] | None) -> bytes:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = datasets.Value(part.features.dtype.name)
    features: dict[str, Any] = {"id": datasets.Value("int64"), "path": datasets.Value("string")}
    columns: list[Any] = [pa.array(part.ids), pa.array(part.paths, pa.string())]
    if part.labels is not None:
        plain = datasets.Value("string" if labels_are_text else "int64")
        features["label"] = datasets.ClassLabel(names=class_names) if class_names else plain
        columns.append(pa.array(part.labels, pa.string() if labels_are_text else pa.int64()))
    for name, array in (("embedding", part.features), ("patches", part.patches)):
        if array is None:
            continue
        feature, column = number, pa.array(array.reshape(-1))
        for length in reversed(array.shape[1:]):
            feature = datasets.List(feature, length=length)
            column = pa.FixedSizeListArray.from_arrays(column, length)
        features[name] = feature
        columns.append(column)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, schema=datasets.Features(features).arrow_schema), buffer)
    return buffer.getvalue()


def _from_parquet(path: Path, patches: bool) -> Part:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        wanted = [name for name in ("id", "path", "label", "embedding") if name in names]
        table = file.read([*wanted, *(["patches"] if patches and "patches" in names else [])])
    labels = table["label"].to_pylist() if "label" in wanted else None
    arrays = {name: _array(table[name]) for name in ("embedding", "patches") if name in table.column_names}
    ids = table["id"].to_numpy()
    return Part(ids, table["path"].to_pylist(), arrays["embedding"], arrays.get("patches"), labels)


def _array(column: Any) -> np.ndarray:
    """Return a column of lists in lists, each of a fixed length, as an array."""
    values, shape = column.combine_chunks(), [len(column)]
    while hasattr(values.type, "list_size"):
        shape.append(values.type.list_size)
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False).reshape(shape)


def _from_safetensors(path: Path, patches: bool) -> Part:
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        names = set(file.keys())
        kept = file.get_tensor("patches") if patches and "patches" in names else None
        return Part(file.get_tensor("id"), [], file.get_tensor("embedding"), kept)


def _from_npy(folder: Path, stem: str, patches: bool) -> Part:
    path = folder / f"{stem}.patches.npy"
    kept = np.load(path, allow_pickle=False) if patches and path.exists() else None
    features = np.load(folder / f"{stem}.npy", allow_pickle=False)
    return Part(np.empty(0, np.int64), [], features, kept)


def _add_lines(part: Part, path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    part.ids = np.array([line["id"] for line in lines], np.int64)
    part.paths = [line["path"] for line in lines]
    part.labels = [line["label"] for line in lines] if lines and "label" in lines[0] else None
