"""Images for pre-training, from a dataset to the batches that the model sees.

The way of an image through this package, one module after the other:

1. `sources` opens a dataset by its name and finds the column with the images (`textures` are built in).
2. `rows` reads rows without decoding them, by index or shard by shard; `shards` divides a stream.
3. `stream` and `order` say which row comes next: a function of the seed, whatever the number of processes and workers.
4. `decoding` makes an RGB image of a row, and `crops` cuts its global and local crops and draws their augmentation
   (`crop_arguments` has the options).
5. `reader` reads the rows of streams in processes of its own. `batches` collates the crops, replaces rows that cannot
   be decoded, and draws `masks` of the global views; `workers` runs this in worker processes.
6. `loader` hands the batches out, and knows where to resume.
7. `augmentation` colours and normalises a batch on the training device. `training.trainer` gives it to the model.

`processor` makes the image processor with which a trained model is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augmentation import augment
    from .columns import find_image_column
    from .crop_arguments import CropArguments
    from .crops import multi_crop
    from .decoding import UndecodableImage, open_image
    from .loader import PretrainingLoader
    from .masks import block_masks
    from .mixture import DatasetMixture
    from .sources import open_dataset

__all__ = [
    "CropArguments",
    "DatasetMixture",
    "PretrainingLoader",
    "UndecodableImage",
    "augment",
    "block_masks",
    "find_image_column",
    "multi_crop",
    "open_dataset",
    "open_image",
]

# The module of each name, which is imported on first use: crop_arguments needs no library, the others do.
_MODULES = {
    "CropArguments": "crop_arguments",
    "DatasetMixture": "mixture",
    "PretrainingLoader": "loader",
    "UndecodableImage": "decoding",
    "augment": "augmentation",
    "block_masks": "masks",
    "find_image_column": "columns",
    "multi_crop": "crops",
    "open_dataset": "sources",
    "open_image": "decoding",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
