"""The arguments of crops, colours and masks. No library is imported, so that commands show their help at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from ..ranges import COUNT, FINITE, NOT_NEGATIVE, POSITIVE, SHARE, WHOLE, Range, check_fields

MAX_IMAGE_PIXELS = 2**27  # 134 million: about 400 MB as RGB


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
        default_factory=lambda: [0.485, 0.456, 0.406],
        metadata={"help": "Mean of red, green and blue in 0..1, subtracted from the pixels (ImageNet's)."},
    )
    image_std: list[float] = field(
        default_factory=lambda: [0.229, 0.224, 0.225],
        metadata={"help": "Standard deviation of red, green and blue in 0..1 (ImageNet's)."},
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
        self._check_count("image_mean", 3, "red, green, blue")
        self._check_count("image_std", 3, "red, green, blue")

    def _check_count(self, name: str, count: int, meaning: str) -> None:
        if len(getattr(self, name)) != count:
            raise ValueError(f"{name} has {len(getattr(self, name))} numbers: give {count} ({meaning}).")
