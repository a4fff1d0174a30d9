"""Loading a saved model of a pre-training run whole, or not at all."""

from __future__ import annotations

from pathlib import Path

from .configuration_poa import PoaConfig
from .modeling_poa_pretraining import PoaForPreTraining
from .saved import load_saved_model
from .saved_files import read_config_fields


def load_complete(folder: str | Path) -> PoaForPreTraining:
    """Load a saved model, and refuse a folder that lacks parameters instead of initialising them anew.

    Raises:
        ValueError: If the folder cannot be read, holds another model or lacks parameters.
    """
    folder = Path(folder)
    fields = read_config_fields(folder, folder)
    if (model_type := fields.get("model_type")) != PoaConfig.model_type:
        raise ValueError(f"{folder} holds a {model_type!r} model, not the teacher and student of a pre-training run.")
    loaded, missing, _ = load_saved_model(PoaForPreTraining, folder)
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} parameters ({missing[0]}, ...): it is not a complete checkpoint."
        )
    assert isinstance(loaded, PoaForPreTraining)
    return loaded
