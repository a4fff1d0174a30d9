"""Images to train on: opening, shuffling, decoding, cropping, masking and colouring them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .augmentation import augment
    from .crop_arguments import CropArguments
    from .crops import multi_crop
    from .decoding import UndecodableImage, open_image
    from .loader import PretrainingLoader
    from .masks import block_masks
    from .sources import find_image_column, open_dataset

__all__ = [
    "CropArguments",
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
    "PretrainingLoader": "loader",
    "UndecodableImage": "decoding",
    "augment": "augmentation",
    "block_masks": "masks",
    "find_image_column": "sources",
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
