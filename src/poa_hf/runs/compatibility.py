"""Whether a model can go on from a checkpoint: it has the same parameters, and learns from the same teacher."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedConfig

from .json_files import read_object
from .layout import CONFIG

# Fields that may change when a run is resumed; all others decide which parameters exist and what they compute.
_NOT_ARCHITECTURE = {
    *("transformers_version", "architectures", "dtype", "_name_or_path", "auto_map"),
    *("warm_started_from", "units_ordered_on"),
    *("distillation", "gram_teacher"),  # see check_same_teacher and training.gram
    *("koleo_weight", "gram_weight", "intact_weight", "same_view_weight", "elastic_teacher"),
    *("student_temperature", "drop_path_rate", "hidden_dropout_prob"),
    *("attention_probs_dropout_prob", "sampling_bias", "num_candidates", "initializer_range", "layerscale_value"),
}


def check_architecture(config: PreTrainedConfig, checkpoint: Path) -> None:
    """Check that a checkpoint's model has the architecture of `config`.

    Raises:
        ValueError: If it has another one, with the first field that differs.
    """
    saved = read_object(checkpoint / CONFIG)
    current = json.loads(config.to_json_string(use_diff=False))
    for field, old, new in _differences(saved, current):
        raise ValueError(f"{checkpoint} has another architecture: its {field} is {old}, this model's is {new}.")


def check_same_teacher(config: PreTrainedConfig, checkpoint: Path) -> None:
    """Check that a checkpoint's model learns from the same foreign teacher, in the same way, as that of `config`.

    Raises:
        ValueError: If not, with what differs.
    """
    before, now = (
        fields if isinstance(fields, dict) else {}
        for fields in (read_object(checkpoint / CONFIG).get("distillation"), getattr(config, "distillation", None))
    )
    if before == now:
        return
    if not before or not now or before.get("teacher") != now.get("teacher"):
        names = [repr(fields["teacher"]) if "teacher" in fields else "no foreign teacher" for fields in (before, now)]
        raise ValueError(
            f"{checkpoint} belongs to a run that learns from {names[0]}, this one learns from {names[1]}: resume with "
            "the same --foreign_teacher, or start anew."
        )
    changed = next(name for name in now if before.get(name) != now[name])
    if changed == "fingerprint":
        raise ValueError(
            f"{checkpoint} belongs to a run that learns from {now['teacher']} with other weights than it has now: "
            "resume with the same teacher, or start anew."
        )
    raise ValueError(
        f"{checkpoint} belongs to a run that learns from {now['teacher']} with {changed} {before.get(changed)!r}, this "
        f"one with {now[changed]!r}: resume with the same foreign_teacher options, or start anew."
    )


def _differences(saved: dict, current: dict, prefix: str = "") -> Iterator[tuple[str, object, object]]:
    for key in sorted(saved.keys() & current.keys() - _NOT_ARCHITECTURE):
        if isinstance(saved[key], dict) and isinstance(current[key], dict):
            yield from _differences(saved[key], current[key], f"{prefix}{key}.")
        elif saved[key] != current[key]:
            yield f"{prefix}{key}", saved[key], current[key]
