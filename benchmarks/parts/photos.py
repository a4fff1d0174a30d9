"""What comparisons on small photographs have in common: the recipe, and the sizes that are compared."""

from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart_photos.yaml"
# for runs of 1,000 steps and more, instead of the 900 of that configuration
RECIPE: dict[str, Any] = {"teacher_momentum": 0.97, "final_teacher_momentum": 0.998, "grayscale_probability": 0.1}
SIZES = ("32x2", "48x3", "64x4")  # the smallest, a middle one and the full size
