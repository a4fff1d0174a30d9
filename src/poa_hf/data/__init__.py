"""Images to train on: opening, shuffling, decoding, cropping, masking and colouring them."""

from poa_hf.data.augment import augment
from poa_hf.data.crops import CropArguments, multi_crop
from poa_hf.data.decoding import UndecodableImage, open_image
from poa_hf.data.loader import PretrainingLoader
from poa_hf.data.masks import block_masks
from poa_hf.data.sources import find_image_column, open_dataset

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
