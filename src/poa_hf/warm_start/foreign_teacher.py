"""Load a frozen teacher from a folder or the Hub."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModel

from ..locations import looks_local, shown_name
from ..models.foreign_teacher import ForeignTeacher
from ..models.saved import load_saved_model
from ..runs.layout import CONFIG
from ..runs.load import resolve_run


def load_foreign_teacher(location: str | Path, image_size: int | None = None) -> ForeignTeacher:
    """Load a frozen teacher from a folder or the Hub; nothing of a stranger's code runs.

    Args:
        location: A folder or Hub id of a model that `AutoModel` loads, or a pre-training run, whose teacher is taken.
        image_size: Side in pixels of the images that it is given; what it was made for by default.

    Raises:
        ValueError: If there is no such model, it cannot be loaded or lacks weights, or it does not take images.
    """
    folder, text = Path(location).expanduser(), str(location).strip()
    is_local = bool(text) and folder.is_dir()
    if not text or (looks_local(text) and not is_local):
        raise ValueError(f"There is nothing at {text!r} to learn from: give a model's folder or Hub id, or a run.")
    name = shown_name(folder) if is_local else str(location)
    if is_local and not (folder / CONFIG).exists():
        folder = resolve_run(folder)
    place = folder if is_local else str(location)
    model, missing, _ = load_saved_model(AutoModel, place, name)
    poolers = [parameter for parameter in missing if "pooler" in parameter]
    lacking = [each for each in missing if each not in poolers and not each.endswith("mask_token")]
    if lacking:
        raise ValueError(
            f"{name} lacks {len(lacking)} parameters ({lacking[0]}, ...), which would be random: give a whole "
            "checkpoint as teacher."
        )
    model.name_or_path = str(place)
    return ForeignTeacher(model, name, image_size, has_pooler=not poolers)
