"""The keys of a recipe: which there are, where each belongs, and which one an option takes out of the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..formatting import shown_name, suggest
from .data_options import RECIPE_KEYS
from .other_names import instead_of

_SET_BY_POA = {"warm_started_from", "units_ordered_on", "distillation", "gram_teacher"}
_ONE_OF = (("num_train_epochs", "max_steps"), ("warmup_ratio", "warmup_steps"))  # two ways to say one thing


def check_keys(content: Iterable[Any], known: set[str]) -> None:
    """Raise a ValueError for a key of a recipe that is not known, with where it belongs or the nearest known ones."""
    for key in content:
        if key not in known:
            hint = instead_of(str(key)) or suggest(str(key), {*known, "model"})
            place = str(key) if str(key).startswith("model.") else place_in_model(key)
            if place:
                hint = f"it belongs under {' and there under '.join(place.split('.')[:-1])}."
            raise ValueError(f"{shown_name(key)} is not a known key: {hint}")


def place_in_model(name: object) -> str | None:
    """Return where a field of the model is given, such as `model.koleo_weight`; None for other names."""
    from transformers import PreTrainedConfig

    from .. import PoaConfig, PoaDinov2RegistersConfig, PoaDinov3ViTConfig, PoaResNetConfig, PoaSwinConfig, PoaViTConfig
    from ..models.from_fields import field_names

    general = field_names(PreTrainedConfig) - {"hidden_size"}
    if name in field_names(PoaConfig) - general - _SET_BY_POA:
        return f"model.{name}"
    families = (PoaViTConfig, PoaSwinConfig, PoaResNetConfig, PoaDinov2RegistersConfig, PoaDinov3ViTConfig)
    return f"model.backbone_config.{name}" if any(name in field_names(each) - general for each in families) else None


def replaced_by(options: Mapping[str, Any]) -> set[str]:
    """Return the keys of a file that options replace because they say the same thing in another way.

    These are where images come from, how long the run is, and how long its warm-up.

    Raises:
        ValueError: If the options say how long in both ways.
    """
    replaced: set[str] = set()
    if options.get("datasets"):
        replaced |= {"dataset_name", "dataset_config_name", "dataset_split", *RECIPE_KEYS}
    elif "dataset_name" in options:
        replaced.add("datasets")
    given = {name for name, value in options.items() if value is not None}
    for pair in _ONE_OF:
        if given.issuperset(pair):
            raise ValueError(f"--{pair[0]} is given beside --{pair[1]}: leave one of them out.")
        if given.intersection(pair):
            replaced |= {*pair} - given
    return replaced
