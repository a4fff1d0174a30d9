"""Multi-crop: cut the global and local crops of one image, and draw the parameters of their augmentation.

Boxes follow torchvision's `RandomResizedCrop`, colour factors its `ColorJitter`, and the choice of the views that are
blurred or solarised follows DINO. Everything random about an image is drawn here, from one generator, so that an
image's crops do not depend on the process or worker that cuts them.

Follows `decoding`; `batches` collates the crops, and `augmentation` applies the drawn parameters on the device.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from .crop_arguments import CropArguments
from .decoding import Pixels, as_pixels, oriented_size, shrink_while_decoding
from .metadata import MIRRORED_COLUMNS, MIRRORED_ROWS, orientation

ASPECT_RATIO = (3 / 4, 4 / 3)  # width over height of a crop's box
BOX_ATTEMPTS = 10
BLUR_SIGMA = (0.1, 2.0)  # pixels of the crop
# How much finer than its crops a shrunk JPEG must be: shrinking blurs what is nearly too fine for it. With 4, crops of
# photographs differ by 0.2 to 0.3 of 255 from those of the whole image, and with 1 by 2.
SHRINK_MARGIN = 4

__all__ = ["CropArguments", "draw_augmentation", "draw_boxes", "multi_crop"]


def draw_boxes(
    rng: np.random.Generator, width: int, height: int, scale_low: np.ndarray, scale_high: np.ndarray
) -> np.ndarray:
    """Draw the boxes of N crops, as torchvision's `RandomResizedCrop` does.

    A box is the first of ten random areas and log-uniform aspect ratios that fits into the image; if none does, it is
    the largest centred box with an allowed aspect ratio. The same number of random numbers is drawn for every image.

    Args:
        rng: The image's generator.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        scale_low: Smallest share of the image's area, (N,).
        scale_high: Largest share of the image's area, (N,).

    Returns:
        Left, top, right and bottom in whole pixels: int64 (N, 4).
    """
    count = len(scale_low)
    shape = (count, BOX_ATTEMPTS)
    area = width * height * rng.uniform(scale_low[:, None], scale_high[:, None], shape)  # (N, attempts)
    aspect = np.exp(rng.uniform(np.log(ASPECT_RATIO[0]), np.log(ASPECT_RATIO[1]), shape))
    corner = rng.random((count, 2))

    box_width, box_height = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (box_width > 0) & (box_width <= width) & (box_height > 0) & (box_height <= height)
    first = fits.argmax(axis=1)
    rows = np.arange(count)
    w, h = box_width[rows, first], box_height[rows, first]
    left, top = np.floor(corner[:, 0] * (width - w + 1)), np.floor(corner[:, 1] * (height - h + 1))

    none = ~fits.any(axis=1)
    if none.any():
        fall_width = min(width, max(1, round(height * ASPECT_RATIO[1])))
        fall_height = min(height, max(1, round(width / ASPECT_RATIO[0])))
        w[none], h[none] = fall_width, fall_height
        left[none], top[none] = (width - fall_width) // 2, (height - fall_height) // 2
    return np.stack([left, top, left + w, top + h], axis=1).astype(np.int64)


def draw_augmentation(rng: np.random.Generator, args: CropArguments) -> dict[str, np.ndarray]:
    """Draw the parameters of the augmentation of one image's N crops, the two global views first.

    Returns:
        Arrays with one row per crop. `flip`, `jitter`, `grayscale`, `blur`, `solarize`: bool, whether the operation is
        applied. `brightness`, `contrast`, `saturation`: float32 factors, where 1 changes nothing. `hue`: float32, in
        turns of the colour circle. `order`: uint8 (N, 4), the order in which these four are applied, by their numbers
        in this list. `sigma`: float32, the blur's standard deviation in pixels.
    """
    count = 2 + args.num_local_crops
    blur = np.array([*args.blur_probability[:2]] + [args.blur_probability[2]] * args.num_local_crops)
    solarize = np.zeros(count)
    solarize[1] = args.solarize_probability
    chance = rng.random((5, count))
    brightness, contrast, saturation, hue = args.color_jitter
    low = np.array([max(0, 1 - brightness), max(0, 1 - contrast), max(0, 1 - saturation), -hue, BLUR_SIGMA[0]])
    high = np.array([1 + brightness, 1 + contrast, 1 + saturation, hue, BLUR_SIGMA[1]])
    strength = rng.uniform(low[:, None], high[:, None], (5, count)).astype(np.float32)
    order = rng.permuted(np.tile(np.arange(4, dtype=np.uint8), (count, 1)), axis=1)
    return {
        "flip": chance[0] < args.flip_probability,
        "jitter": chance[1] < args.color_jitter_probability,
        "brightness": strength[0],
        "contrast": strength[1],
        "saturation": strength[2],
        "hue": strength[3],
        "order": order,
        "grayscale": chance[2] < args.grayscale_probability,
        "blur": chance[3] < blur,
        "sigma": strength[4],
        "solarize": chance[4] < solarize,
    }


def multi_crop(
    image: Pixels, rng: np.random.Generator, args: CropArguments
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Cut the crops of an image, and draw the parameters of their augmentation.

    A JPEG that was opened by `open_lazily` and is much larger than its crops is decoded at a half or a quarter of its
    size, as long as it stays four times as fine as every crop.

    Args:
        image: What `open_lazily` returns; its pixels need not have been read yet.
        rng: The image's generator.
        args: Sizes, numbers and scales of the crops.

    Returns:
        Global crops, uint8 (2, C, g, g); local crops, uint8 (V, C, l, l), with one channel for each number of
        `args.image_mean`; and what `draw_augmentation` returns.

    Raises:
        UndecodableImage: If the pixels cannot be read.

    Example:
        >>> args = CropArguments(global_crop_size=32, local_crop_size=16, num_local_crops=3)
        >>> image = Image.new("RGB", (80, 60))
        >>> global_crops, local_crops, _ = multi_crop(image, np.random.default_rng(0), args)
        >>> global_crops.shape, local_crops.shape
        ((2, 3, 32, 32), (3, 3, 16, 16))
    """
    augmentation = draw_augmentation(rng, args)
    scales = np.array([args.global_crop_scale] * 2 + [args.local_crop_scale] * args.num_local_crops)
    sizes = [args.global_crop_size] * 2 + [args.local_crop_size] * args.num_local_crops
    width, height = oriented_size(image)
    boxes = draw_boxes(rng, width, height, scales[:, 0], scales[:, 1])

    sides = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
    turned = 1 if isinstance(image, np.ndarray) else orientation(image)
    factor = shrink_while_decoding(image, needed=SHRINK_MARGIN * float(np.max(sizes / sides)))
    image = as_pixels(image, args.max_image_pixels, args.num_channels, args.image_range)
    g, l, channels = args.global_crop_size, args.local_crop_size, args.num_channels  # noqa: E741 (as in the docstring)
    global_crops = np.empty((2, channels, g, g), dtype=np.uint8)
    local_crops = np.empty((args.num_local_crops, channels, l, l), dtype=np.uint8)
    crops = [*global_crops, *local_crops]
    if factor == 1 or isinstance(image, np.ndarray):
        _cut_whole(image, boxes, crops)
    else:
        _cut_shrunk(image, shrunk_boxes(boxes, (width, height), image.size, factor, turned), crops)
    return global_crops, local_crops, augmentation


def cut_box(image: Pixels, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a box of a decoded image, resized: uint8 (height, width, C).

    Args:
        image: An image, not changed.
        box: Left, top, right and bottom in whole pixels.
        size: Height and width of the result.
    """
    array = np.asarray(image)
    crop = np.empty((array.size // (array.shape[0] * array.shape[1]), *size), dtype=np.uint8)
    _cut_whole(image, box[None], [crop])
    return np.ascontiguousarray(np.moveaxis(crop, 0, -1))


def shrunk_boxes(
    boxes: np.ndarray, size: tuple[int, int], shrunk_size: tuple[int, int], factor: int, turned: int
) -> np.ndarray:
    """Return boxes of an upright image in the coordinates of the same image, decoded at 1/`factor` of its size.

    Shrinking begins at the corner where the file begins, and completes the last row and column at the opposite edges.
    Turned upright, these may be the image's left and upper edges, so that boxes are counted from the other ones.

    Args:
        boxes: Left, top, right and bottom (N, 4), in pixels of the whole image.
        size: Width and height of the upright image.
        shrunk_size: Width and height of the shrunk upright image, in whole pixels.
        factor: What the sides were divided by.
        turned: The EXIF orientation.

    Example:
        >>> shrunk_boxes(np.array([[0, 0, 5, 8]]), (5, 8), (3, 4), factor=2, turned=2)
        array([[0.5, 0. , 3. , 4. ]])
    """
    offset = np.zeros(2)
    for axis, mirrored in enumerate((MIRRORED_COLUMNS, MIRRORED_ROWS)):
        if turned in mirrored:
            offset[axis] = shrunk_size[axis] - size[axis] / factor
    return np.clip(boxes / factor + np.tile(offset, 2), 0, np.tile(shrunk_size, 2))


def _cut_whole(image: Pixels, boxes: np.ndarray, crops: list[np.ndarray]) -> None:
    """Resize boxes of whole pixels into `crops`, each (C, side, side), as `image.crop(box).resize` does.

    PyTorch computes what Pillow does (bicubic, antialiased; rounding may differ by 1 or 2 of 255) with vector
    instructions, in a fraction of the time.
    """
    import torch
    from torch.nn.functional import interpolate

    array = np.array(image)
    # (1, C, height, width), with the channels innermost in memory; an image of mode L has no axis for its channel
    pixels = torch.from_numpy(array.reshape(*array.shape[:2], -1)).permute(2, 0, 1)[None]
    for (left, top, right, bottom), crop in zip(boxes.tolist(), crops, strict=True):
        box = pixels[:, :, top:bottom, left:right].contiguous(memory_format=torch.channels_last)
        torch.from_numpy(crop).copy_(interpolate(box, crop.shape[1:], mode="bicubic", antialias=True)[0])


def _cut_shrunk(image: Image.Image, boxes: np.ndarray, crops: list[np.ndarray]) -> None:
    """Do the same for an image decoded at a reduced size, where boxes may begin and end within a pixel."""
    for box, crop in zip(boxes, crops, strict=True):
        corner = np.floor(box[:2])
        # cut first: `resize` would mix in what lies outside the box, along its edges
        part = image.crop((*corner.astype(int).tolist(), *np.ceil(box[2:]).astype(int).tolist()))
        within = tuple((box - np.tile(corner, 2)).tolist())
        resized = np.asarray(part.resize(crop.shape[1:], Image.Resampling.BICUBIC, box=within))
        crop[:] = np.moveaxis(resized.reshape(*resized.shape[:2], -1), -1, 0)
