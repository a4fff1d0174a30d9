"""Images to train on: opening, shuffling, decoding, cropping, masking and colouring them."""

from .augment import augment
from .crops import CropArguments, multi_crop
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
