"""Pages of images and those nearest to them: one file that works without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from ..formatting import printable
from ..runs.atomic import write_text
from .embeddings import Embeddings
from .nearest import Neighbour, Query, nearest
from .thumbnails import thumbnail, thumbnails

INDEX_PAGE, QUERY_PAGE = "index.html", "query.html"
_GENERATOR = '<meta name="generator" content="poa embed">'


@dataclass(frozen=True)
class Shown:
    """An image at the head of its neighbours.

    Args:
        id: The number of its row, or its place among the photographs.
        name: What to call it.
        picture: The URI of a photograph's picture; None for an image of the dataset.
        neighbours: The images nearest to it.
        label: Its label, if there is one.
    """

    id: int
    name: str
    picture: str | None
    neighbours: list[Neighbour]
    label: int | str | None = None


def write_index_page(
    embeddings: Embeddings, page: str | Path | None = None, num_images: int = 48, top: int = 10, dataset: Any = None
) -> Path:
    """Write a page on images from all over the dataset, each with those nearest to it.

    Args:
        embeddings: The images.
        page: The file to write; by default `index.html` in the folder of the embeddings.
        num_images: The number of images to show.
        top: The number of nearest images to show of each.
        dataset: The dataset or its name, where it is not what it was.

    Returns:
        The path of the page.

    Raises:
        ValueError: If the page cannot be written.
    """
    path = _checked(embeddings.folder / INDEX_PAGE if page is None else Path(page))
    places = np.unique(np.linspace(0, len(embeddings) - 1, min(num_images, len(embeddings))).round().astype(int))
    chosen, start = [], 0
    for part in embeddings.parts():
        inside = places[(places >= start) & (places < start + len(part))] - start
        chosen += [(int(part.ids[place]), torch.tensor(part.features[place]).float()) for place in inside]
        start += len(part)
    ids, features = [index for index, _ in chosen], torch.stack([of_image for _, of_image in chosen])
    themselves = _themselves(embeddings, ids)
    found = nearest(embeddings, features, top, without=ids)
    pictures = thumbnails(embeddings, {*ids, *(each.id for of_one in found for each in of_one)}, dataset)
    shown = [
        Shown(index, themselves[index].name, None, neighbours, themselves[index].label)
        for index, neighbours in zip(ids, found, strict=True)
    ]
    return _write(path, embeddings, shown, pictures, is_query=False)


def write_query_page(
    embeddings: Embeddings,
    queries: Sequence[Query],
    found: Sequence[list[Neighbour]],
    page: str | Path | None = None,
    dataset: Any = None,
) -> Path:
    """Write a page on photographs, each with the images nearest to it.

    Args:
        embeddings: The images that were searched.
        queries: The photographs.
        found: For each, the nearest images.
        page: The file to write; by default `query.html` in the folder of the embeddings.
        dataset: The dataset or its name, where it is not what it was.

    Returns:
        The path of the page.

    Raises:
        ValueError: If the page cannot be written.
    """
    path = _checked(embeddings.folder / QUERY_PAGE if page is None else Path(page))
    pictures = thumbnails(embeddings, {each.id for of_one in found for each in of_one}, dataset)
    shown = [
        Shown(number, query.name, thumbnail(query.image), neighbours)
        for number, (query, neighbours) in enumerate(zip(queries, found, strict=True))
    ]
    return _write(path, embeddings, shown, pictures, is_query=True)


def _themselves(embeddings: Embeddings, ids: list[int]) -> dict[int, Neighbour]:
    """Return names and labels of rows."""
    wanted, found = {*ids}, {}
    for part in embeddings.parts():
        for place, index in enumerate(part.ids.tolist()):
            if index in wanted:
                found[index] = Neighbour(index, 1.0, part.paths[place], embeddings.label_of(part, place))
    return found


def _write(path: Path, embeddings: Embeddings, shown: list[Shown], pictures: dict[int, str], is_query: bool) -> Path:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(Path(__file__).with_name("template.html").read_text(encoding="utf-8"))
    manifest = embeddings.manifest
    size = f" {manifest.model['size']}" if manifest.model["size"] else ""
    facts = [
        ("images", f"{len(embeddings):,}"),
        ("features", f"{manifest.dimension} numbers of each"),
        ("model", f"{manifest.model['name']}{size}"),
    ]
    if manifest.dataset["name"]:
        facts.append(("dataset", Path(manifest.dataset["name"]).name))
    content = template.render(
        generator=_GENERATOR,
        name=embeddings.folder.resolve().name,
        facts=facts,
        shown=shown,
        pictures=pictures,
        is_query=is_query,
    )
    try:
        write_text(path, printable(content))
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror or error}): give another --output.") from error
    return path


def _checked(page: Path) -> Path:
    """Raise a ValueError for a path where no page can be, or where another page is."""
    if page.is_dir() or not page.absolute().parent.is_dir():
        raise ValueError(f"{page} cannot be a page: give --output the name of a file in a folder that exists.")
    if page.exists() and _GENERATOR not in page.read_text(errors="replace")[:2000]:
        raise ValueError(f"{page} is another file: give another --output.")
    return page
