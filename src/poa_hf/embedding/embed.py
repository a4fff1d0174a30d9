"""Write the features of all images of a dataset into a folder, part by part; a run that was stopped goes on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..data.crop_arguments import MAX_IMAGE_PIXELS
from ..data.processor import decoding_of
from ..data.shards import refuse_split_stream
from ..data.sources import open_dataset
from ..evaluation.processes import Processes
from ..evaluation.subject import Subject, load_subject
from ..formatting import listed
from ..locations import leads_outside
from ..models.elastic_model import ElasticModelMixin
from ..ranges import COUNT, check_number, plain
from ..runs.atomic import UNFINISHED
from ..runs.layout import LOCK
from ..sub_network import SubNetwork
from .description import described_dataset, described_model
from .embeddings import Embeddings
from .features import Features, embedder
from .files import DTYPES, FORMATS
from .manifest import MANIFEST, RECORDS, Manifest
from .rows import ImageRows
from .writer import Writer

_MOST_ROWS, _MOST_BYTES = 10_000, 256_000_000  # of a part, unless its rows are given


def embed(
    model: str | Path | Subject,
    dataset: Any,
    output: str | Path,
    size: str | SubNetwork | None = None,
    *,
    config_name: str | None = None,
    split: str = "train",
    dataset_options: dict[str, Any] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    max_images: int | None = None,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    patches: bool = False,
    format: str = "parquet",
    dtype: str = "float32",
    rows_per_shard: int | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    bf16: bool = False,
) -> Embeddings:
    """Compute the features of all images of a dataset, and write them into a folder.

    The dataset is written in parts, each complete or absent. Called again after it was stopped, it goes on with the
    first part that is missing. Several processes (`accelerate launch`) write parts of their own; the result is that of
    one process. Images that cannot be decoded are left out, named in a warning and listed in `skipped_images.jsonl`.

    Args:
        model: What `load_subject` takes or returns: a run, a checkpoint, an extracted or stock model, or a Hub id.
        dataset: A dataset or stream, or the name of one, as `open_dataset` takes it.
        output: The folder to write.
        size: The size of an elastic model, the full one by default.
        config_name: The configuration of a dataset that is given by name.
        split: The split of a dataset that is given by name.
        dataset_options: Further arguments of `open_dataset`.
        image_column: The column with the images, found by its type or name by default.
        label_column: A column to keep as `label`.
        max_images: The number of rows to use, from the first one on; all by default.
        max_image_pixels: The largest width times height of an image that is decoded.
        patches: Whether to keep the features of patches, (h, w, D) of each image, as well.
        format: `parquet`, `safetensors` or `npy`.
        dtype: `float32` or `float16`, what is stored.
        rows_per_shard: The rows of a part; by default 10,000, or as many as make 256 MB.
        batch_size: Images of one forward pass.
        num_workers: Processes that decode images.
        bf16: Compute in bfloat16.

    Returns:
        What was written. Row `i` of it belongs to row `ids[i]` of the dataset.

    Raises:
        ValueError: For a model, dataset or folder that cannot be used, a folder that holds embeddings of another model,
            size or dataset, or features that are not finite.

    Example:
        embeddings = embed("runs/vit", "photos", "embeddings", size="small")
        embeddings.features.shape  # (1000, 384)
        embeddings.paths[0]  # 'cats/1.jpg'
    """
    _check_choices(format, dtype, max_images=max_images, rows_per_shard=rows_per_shard, batch_size=batch_size)
    max_images, rows_per_shard = plain(max_images), plain(rows_per_shard)
    folder = Path(output).expanduser()
    _check_folder(folder)
    if not isinstance(model, str | Path | Subject):
        raise ValueError(
            f"model is of the type {type(model).__name__}: give a folder or Hub id, or, for a model in memory, "
            "poa_hf.evaluation.subject.Subject(name, model, processor)."
        )
    subject = model if isinstance(model, Subject) else load_subject(model)
    chosen = _size_of(subject, size)
    name, options = None, {}
    if isinstance(dataset, str | Path):
        given = {"config_name": config_name, "split": split, **(dataset_options or {})}
        name, options = str(dataset), {option: plain(value) for option, value in given.items()}
        dataset = open_dataset(name, **options)
    images = ImageRows(
        dataset, image_column, label_column, max_images, max_image_pixels, decoding_of(subject.processor)
    )
    processes = Processes()
    refuse_split_stream(dataset, processes.count)
    with processes, embedder(subject, chosen, processes.device, patches, bf16) as model_of_size:
        tried = model_of_size.try_out()
        manifest = Manifest(
            model=described_model(model, subject, chosen, hashed=processes.is_main),
            dataset=described_dataset(name, options, images),
            decoding=decoding_of(subject.processor),
            dimension=tried.images.shape[1],
            patches=None if tried.patches is None else list(tried.patches.shape[1:]),
            dtype=dtype,
            bf16=bf16,
            format=format,
            rows_per_shard=rows_per_shard or _usual_rows(tried, dtype),
            class_names=images.class_names,
        )
        writer = Writer(folder, manifest, images, model_of_size, processes)
        with ExitStack() as held:
            records = writer.start(held, keep_rows=rows_per_shard is None)
            if not writer.manifest.complete:
                writer.write_missing(records, batch_size, num_workers)
    return Embeddings.load(folder)


def _check_choices(file_format: str, dtype: str, **counts: int | None) -> None:
    for name, value, known in (("format", file_format, FORMATS), ("dtype", dtype, DTYPES)):
        if value not in known:
            raise ValueError(f"{name} is {value!r}: choose from {', '.join(known)}.")
    for name, count in counts.items():
        if count is not None:
            check_number(name, count, COUNT)


def _check_folder(folder: Path) -> None:
    """Raise a ValueError for a path that is no folder, and for a folder that holds other things."""
    for parent in (folder.absolute(), *folder.absolute().parents):
        if parent.exists() and not parent.is_dir():
            raise ValueError(f"{parent} is a file: give --output the name of a folder.")
    if not folder.is_dir() or (folder / MANIFEST).exists():
        if leads_outside(folder / RECORDS, folder):
            raise ValueError(f"{folder / RECORDS} leads to another folder: give another --output.")
        return
    # what a command that was killed at its very start has left
    held = [path.name for path in folder.iterdir() if not path.name.startswith(UNFINISHED)]
    others = [name for name in held if name not in (RECORDS, LOCK)]
    if others or (RECORDS in held and any((folder / RECORDS).iterdir())):
        raise ValueError(
            f"{folder} holds other files ({listed(sorted(held), 3)}) and no {MANIFEST}: give --output an empty or new "
            "folder."
        )


def _size_of(subject: Subject, size: str | SubNetwork | None) -> str | None:
    if isinstance(subject.model, ElasticModelMixin):
        space = subject.model.config.space
        return str(space.full if size is None else space.resolve(size))
    if size is not None:
        raise ValueError(f"{subject.name} is a model of one size: leave out --size.")
    return None


def _usual_rows(features: Features, dtype: str) -> int:
    numbers = features.images.size + (0 if features.patches is None else features.patches.size)
    return max(1, min(_MOST_ROWS, _MOST_BYTES // (numbers * np.dtype(dtype).itemsize)))
