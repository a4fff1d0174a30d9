"""Convert a checkpoint of the authors' code to the model of a finished run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.processor import usual_processor
from ..models.configuration_poa import PoaConfig
from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..runs.atomic import write_json, written_folder
from ..runs.layout import CONFIG, CONVERSION, EVALUATIONS, PROCESSOR, WEIGHTS
from .config import checkpoint_config
from .files import read_weights
from .names import check_is_elastic, likely_family, parameter_names
from .weights import is_sound, load_official_checkpoint, select_weights

FAMILIES = ("vit", "swin", "resnet")
FILES = {CONFIG, WEIGHTS, PROCESSOR, EVALUATIONS, CONVERSION}


@dataclass(frozen=True)
class Conversion:
    """What a conversion read, and what it did not.

    Attributes:
        source: The checkpoint's path.
        family: `vit`, `swin` or `resnet`.
        config: Configuration of the written model.
        has_heads: Whether the checkpoint holds projection heads.
        not_read: Why each key that was not read was left out, by key.
        parameters: Numbers of parameters read, by part (`backbone`, `dino_head`).
        dtypes: Floating-point types of the checkpoint.
        sizes_from: Where the smallest size and the steps come from.
    """

    source: Path
    family: str
    config: PoaConfig
    has_heads: bool
    not_read: dict[str, str]
    parameters: dict[str, int]
    dtypes: list[str]
    sizes_from: str

    def record(self) -> dict[str, Any]:
        """Return the content of `conversion.json`."""
        return {
            "source": self.source.name,
            "family": self.family,
            "heads": "read" if self.has_heads else "initialised",
            "not_read": self.not_read,
        }

    def __str__(self) -> str:
        backbone = self.config.backbone_config
        space = backbone.space
        heads = self.config.num_prototypes
        prototypes = " + ".join(map(str, heads))
        lines = [
            f"{self.source}: {self.family} of {self.parameters['backbone']:,} parameters ({', '.join(self.dtypes)})",
            f"sizes: {len(space)}, from {space.smallest} to {space.full}; the smallest size and the steps come from "
            f"{self.sizes_from}",
            f"images: {backbone.image_size} pixels",
        ]
        if self.has_heads:
            count = self.parameters["dino_head"]
            lines.append(f"heads: {len(heads)} read ({prototypes} prototypes), {count:,} parameters")
        else:
            lines.append(
                f"heads: none in the file, so {len(heads)} are new ({prototypes} prototypes): extracted sizes have no "
                "heads, but further pre-training starts with untrained heads"
            )
        by_reason = defaultdict(list)
        for name, reason in self.not_read.items():
            by_reason[reason].append(name)
        lines += [f"not read, {reason}: {', '.join(names)}" for reason, names in by_reason.items()]
        return "\n".join(lines if self.not_read else [*lines, "not read: nothing"])


def convert_checkpoint(
    path: Path, family: str, output: Path, model_section: dict[str, Any] | None = None, section_name: str = ""
) -> Conversion:
    """Write a checkpoint of the authors' code as the model of a finished run.

    Args:
        path: The authors' `teacher_checkpoint.pth`, or a `.safetensors` file with the same names.
        family: What it was trained as: `vit`, `swin` or `resnet`.
        output: Folder to write, which is replaced.
        model_section: Fields of `PoaConfig` for what weights do not show; as published by default.
        section_name: What errors and the summary call `model_section`.

    Returns:
        What was read, and what was not.

    Raises:
        ValueError: If the file is not such a checkpoint or not of this family, or if keys would be lost.
    """
    model_type = f"poa_{family}"
    file = read_weights(path)
    selected = select_weights(file.weights, file.other_keys)
    tensors = selected.tensors
    not_read = _keys_not_read(path, tensors, selected.not_needed, model_type)
    config = checkpoint_config(tensors, model_type, model_section, section_name)
    model = load_official_checkpoint(tensors, config).eval()
    conversion = Conversion(
        source=path,
        family=family,
        config=config,
        has_heads=selected.has_heads,
        not_read=not_read,
        parameters={part: _count(tensors, f"{part}.", not_read) for part in ("backbone", "dino_head")},
        dtypes=sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()}),
        sizes_from=section_name or "the published configuration, as weights do not show it (else give --config)",
    )
    _write(model, conversion.record(), output)
    return conversion


def _count(tensors: Mapping[str, Tensor], prefix: str, not_read: Mapping[str, str]) -> int:
    return sum(t.numel() for name, t in tensors.items() if name.startswith(prefix) and name not in not_read)


def _keys_not_read(
    path: Path, tensors: Mapping[str, Tensor], other_keys: Mapping[str, str | None], model_type: str
) -> dict[str, str]:
    """Return why each key that is not read is left out, by key.

    Raises:
        ValueError: For weights of another family or of one size, keys that should be read but are unknown, and numbers
            that are not finite.
    """
    family = model_type.removeprefix("poa_")
    if any("flat_param" in name for name in tensors):
        raise ValueError(
            f"{path} is one process's part of a training state: give the teacher_checkpoint.pth beside it."
        )
    likely = likely_family(tensors)
    if likely is None:
        names = ", ".join([*tensors][:2])
        raise ValueError(f"{path} has no weights under the authors' names ({names or 'no weights'}): give theirs.")
    if likely != model_type:
        likely = likely.removeprefix("poa_")
        raise ValueError(f"{path} looks like a {likely} of the authors' code, not a {family}: give --family {likely}.")
    try:
        check_is_elastic(tensors, model_type)
    except ValueError as error:
        raise ValueError(f"{path} cannot be converted. {error}") from None
    names_of = {name: parameter_names(name, model_type) for name in tensors}
    unknown = [name for name, names in names_of.items() if names is None]
    unknown += [name for name, reason in other_keys.items() if reason is None]
    if unknown:
        raise ValueError(
            f"{path} has {len(unknown)} keys that are not of the authors' {family} and would not be read: "
            f"{', '.join(unknown)}."
        )
    if broken := [name for name, names in names_of.items() if names and not is_sound(tensors[name])]:
        raise ValueError(
            f"{path} has {len(broken)} weights that are not plain tensors of finite numbers ({broken[0]}, ...): give "
            "another checkpoint of that run."
        )
    unused = {name: "no feature is computed with it" for name, names in names_of.items() if names == []}
    return {**{name: reason for name, reason in other_keys.items() if reason}, **unused}


def _write(model: PoaForPreTraining, record: dict[str, Any], output: Path) -> None:
    with written_folder(output.absolute()) as folder:
        model.save_pretrained(folder)
        usual_processor(model.config.backbone_config).save_pretrained(folder)
        write_json(folder / CONVERSION, record)
