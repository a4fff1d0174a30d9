"""The arguments of crops, colours and masks. No library is imported, so that commands show their help at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..ranges import COUNT, FINITE, NOT_NEGATIVE, POSITIVE, SHARE, WHOLE, Range, check_fields

MAX_IMAGE_PIXELS = 2**27  # 134 million: about 400 MB as RGB

RGB_MEAN, RGB_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
GREY_MEAN, GREY_STD = 0.449, 0.226  # their means over the three channels


def usual_statistics(num_channels: int) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of images about which nothing is known, for each channel.

    They are ImageNet's for RGB and grey images; for any other channels 0 and 1, which leave pixels in 0..1.
    """
    known = {1: ([GREY_MEAN], [GREY_STD]), 3: (list(RGB_MEAN), list(RGB_STD))}
    return known.get(num_channels, ([0.0] * num_channels, [1.0] * num_channels))


@dataclass
class CropArguments:
    """How images are cropped, coloured and masked. The defaults are those of DINOv2 (arXiv 2304.07193).

    Raises:
        ValueError: For a value outside its range, or a list of the wrong length.

    Example:
        >>> args = CropArguments(global_crop_size=64, local_crop_size=32, num_local_crops=4)
        >>> args.mask_ratio
        [0.1, 0.5]
    """

    ranges: ClassVar[dict[str, Range]] = {
        "global_crop_size": COUNT,
        "local_crop_size": COUNT,
        "num_local_crops": WHOLE,
        "global_crop_scale": Range(0, 1, above=True),
        "local_crop_scale": Range(0, 1, above=True),
        "max_image_pixels": Range(1, 2**40, whole=True),
        "color_jitter": NOT_NEGATIVE,
        "color_jitter_probability": SHARE,
        "grayscale_probability": SHARE,
        "blur_probability": SHARE,
        "solarize_probability": SHARE,
        "flip_probability": SHARE,
        "mask_ratio": SHARE,
        "mask_probability": SHARE,
        "image_range": FINITE,
        "image_mean": FINITE,
        "image_std": POSITIVE,
    }

    # Crops
    global_crop_size: int = field(default=224, metadata={"help": "Side of the two global crops in pixels."})
    local_crop_size: int = field(default=96, metadata={"help": "Side of the local crops in pixels."})
    num_local_crops: int = field(default=8, metadata={"help": "Number of local crops per image; may be 0."})
    global_crop_scale: list[float] = field(
        default_factory=lambda: [0.32, 1.0],
        metadata={"help": "Smallest and largest share of an image's area that a global crop shows."},
    )
    local_crop_scale: list[float] = field(
        default_factory=lambda: [0.05, 0.32],
        metadata={"help": "Smallest and largest share of an image's area that a local crop shows."},
    )

    # Images
    max_image_pixels: int = field(
        default=MAX_IMAGE_PIXELS,
        metadata={"help": "Largest width times height of an image that is decoded; larger ones are left out."},
    )
    image_range: list[float] | None = field(
        default=None,
        metadata={
            "help": "Values that are black and white in arrays and files of more than 8 bits per channel, such as 0 "
            "10000; by default, their type and largest value say."
        },
    )

    # Colours
    color_jitter: list[float] = field(
        default_factory=lambda: [0.4, 0.4, 0.2, 0.1],
        metadata={"help": "Largest change of brightness, contrast, saturation and hue (hue at most 0.5)."},
    )
    color_jitter_probability: float = field(
        default=0.8, metadata={"help": "Probability that the colours of a crop are changed."}
    )
    grayscale_probability: float = field(default=0.2, metadata={"help": "Probability that a crop is turned grey."})
    blur_probability: list[float] = field(
        default_factory=lambda: [1.0, 0.1, 0.5],
        metadata={"help": "Probability that a crop is blurred: first global view, second global view, local views."},
    )
    solarize_probability: float = field(
        default=0.2, metadata={"help": "Probability that the second global view is solarised."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Probability that a crop is mirrored."})

    # Masks
    mask_ratio: list[float] = field(
        default_factory=lambda: [0.1, 0.5],
        metadata={"help": "Smallest and largest share of the patches that are masked in a masked global view."},
    )
    mask_probability: float = field(default=0.5, metadata={"help": "Share of the global views that are masked."})

    # Normalisation
    image_mean: list[float] = field(
        default_factory=lambda: list(RGB_MEAN),
        metadata={
            "help": "Mean of each channel in 0..1, subtracted from the pixels; as many numbers as num_channels "
            "(default: "
            "ImageNet's for 3 and 1 channels, else measured)."
        },
    )
    image_std: list[float] = field(
        default_factory=lambda: list(RGB_STD),
        metadata={"help": "Standard deviation of each channel in 0..1 (default: likewise)."},
    )

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("global_crop_scale", "local_crop_scale", "mask_ratio"):
            self._check_count(name, 2, "smallest, largest")
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} is {[low, high]}: give the smaller share first.")
        self._check_count("blur_probability", 3, "first global view, second global view, local views")
        self._check_count("color_jitter", 4, "brightness, contrast, saturation, hue")
        if self.color_jitter[3] > 0.5:
            raise ValueError(f"color_jitter is {self.color_jitter}: give a hue of at most 0.5, the last number.")
        if not self.image_mean or len(self.image_mean) != len(self.image_std):
            raise ValueError(
                f"image_mean has {len(self.image_mean)} numbers and image_std {len(self.image_std)}: give both one for "
                "each channel."
            )
        if self.image_range is not None:
            self._check_count("image_range", 2, "black, white")
            if self.image_range[0] >= self.image_range[1]:
                raise ValueError(f"image_range is {self.image_range}: give the smaller value first.")

    @property
    def num_channels(self) -> int:
        """The number of channels of the crops."""
        return len(self.image_mean)

    @property
    def has_default_statistics(self) -> bool:
        """Whether mean and standard deviation are the defaults, which are meant for RGB."""
        return ([*self.image_mean], [*self.image_std]) == usual_statistics(3)

    def _check_count(self, name: str, count: int, meaning: str) -> None:
        if len(getattr(self, name)) != count:
            raise ValueError(f"{name} has {len(getattr(self, name))} numbers: give {count} ({meaning}).")
