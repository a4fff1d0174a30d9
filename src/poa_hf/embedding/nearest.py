"""The images nearest to others by the cosine of their features, over all embeddings of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..data.crop_arguments import MAX_IMAGE_PIXELS
from ..data.decoding import Pixels, UndecodableImage, open_image
from ..evaluation.finite import check_finite
from ..evaluation.subject import Subject, load_subject
from ..locations import looks_local
from .description import weights_hash
from .embeddings import Embeddings
from .features import embedder


@dataclass(frozen=True)
class Neighbour:
    """An image that is near to another one.

    Args:
        id: The number of its row in the dataset.
        similarity: The cosine of the features, -1 to 1.
        path: Its path, if it has one.
        label: Its label, if labels were kept: a name if its number has one.
    """

    id: int
    similarity: float
    path: str | None = None
    label: int | str | None = None

    @property
    def name(self) -> str:
        """What to call the image: its path, or else its row."""
        return self.path or f"row {self.id}"


def nearest(
    embeddings: Embeddings, features: Tensor | np.ndarray, top: int = 10, without: Sequence[int] = ()
) -> list[list[Neighbour]]:
    """Find the images nearest to given features; one part of the embeddings is in memory at a time.

    Args:
        embeddings: The images to search.
        features: (Q, D), of the same model.
        top: The number of images to find for each; fewer are found among fewer.
        without: For each of the Q, the row of an image that is not to be found, such as itself; nothing by default.

    Returns:
        For each of the Q, the nearest images, the nearest first; of equally near ones, that of the first row.

    Raises:
        ValueError: For features of another width or that are not finite, another number of rows than queries in
            `without`, or a damaged part.
    """
    queries = torch.as_tensor(features).float()
    if queries.ndim != 2 or queries.shape[1] != embeddings.manifest.dimension:
        raise ValueError(
            f"The features have shape {tuple(queries.shape)}, and those in {embeddings.folder} "
            f"{embeddings.manifest.dimension} numbers of each image: give those of the same model and size."
        )
    check_finite(queries)
    if len(without) not in (0, len(queries)):
        raise ValueError(f"without has {len(without)} rows for {len(queries)} queries: give one for each, or none.")
    queries = normalize(queries)
    excluded = torch.tensor([*without]) if len(without) else None
    found: list[list[Neighbour]] = [[] for _ in range(len(queries))]
    for part in embeddings.parts():
        similarity = queries @ normalize(torch.tensor(part.features).float()).T  # (Q, n)
        if excluded is not None:
            similarity[excluded[:, None] == torch.tensor(part.ids)[None]] = -torch.inf
        order = similarity.sort(dim=1, descending=True, stable=True).indices[:, :top].tolist()
        for row, (places, kept) in enumerate(zip(order, found, strict=True)):
            values = similarity[row]
            kept += [
                Neighbour(
                    int(part.ids[place]), float(values[place]), part.paths[place], embeddings.label_of(part, place)
                )
                for place in places
                if values[place] > -torch.inf
            ]
            kept.sort(key=lambda each: (-each.similarity, each.id))
            del kept[top:]
    return found


@dataclass(frozen=True)
class Query:
    """A photograph to find similar images of.

    Args:
        name: What to call it.
        image: The decoded photograph, as the model gets it.
    """

    name: str
    image: Pixels


def open_queries(embeddings: Embeddings, photos: Sequence[str | Path]) -> list[Query]:
    """Open the files of photographs.

    Raises:
        ValueError: For a file that is missing or not an image.
    """
    queries = []
    for photo in photos:
        path = Path(photo).expanduser()
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise ValueError(f"{photo} {what}: give --query the file of an image.")
        try:
            image = open_image(path, MAX_IMAGE_PIXELS, **embeddings.manifest.decoding)
        except UndecodableImage as error:
            raise ValueError(f"{photo} cannot be read as an image ({error}): give --query another file.") from error
        queries.append(Query(path.name, image))
    return queries


def features_of(
    embeddings: Embeddings, images: Sequence[Pixels], model: str | Path | Subject | None = None, batch_size: int = 64
) -> Tensor:
    """Compute the features of images by the model of the embeddings.

    Args:
        embeddings: Say which model and size.
        images: What `open_image` returned.
        model: Where the model is now; by default, where it was.
        batch_size: Images of one forward pass.

    Returns:
        float32 (N, D).

    Raises:
        ValueError: If the model is not there, or has changed since.
    """
    described = embeddings.manifest.model
    if model is None:
        source: str | None = described["source"]
        if source is None:
            raise ValueError(f"The model of {embeddings.folder} was in memory: give its folder as MODEL.")
        if looks_local(source) and not Path(source).is_dir():
            raise ValueError(f"The model of {embeddings.folder} is no longer at {source}: give its folder as MODEL.")
        model = source
    subject = model if isinstance(model, Subject) else load_subject(model)
    if weights_hash(subject.model) != described.get("weights"):
        raise ValueError(
            f"{subject.name} is not the model of {embeddings.folder}, or has been trained since: give that model as "
            "MODEL, or embed the images once more."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with embedder(subject, described["size"], device, bf16=embeddings.manifest.bf16) as run:
        batches = [run.of_images([*images[at : at + batch_size]]).images for at in range(0, len(images), batch_size)]
    return torch.from_numpy(np.concatenate(batches))
