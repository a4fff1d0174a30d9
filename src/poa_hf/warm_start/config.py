"""What a pre-trained model says about the elastic one that starts from it: its architecture is the full size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers import BitImageProcessorPil as ImageProcessor

from ..models.configuration_poa import PoaConfig
from ..runs.checkpoints import checkpoints_with_model
from ..runs.layout import CONFIG
from ..runs.load import resolve_run

_VIT = "hidden_size num_hidden_layers num_attention_heads hidden_act layer_norm_eps patch_size num_channels qkv_bias"
# Of each stock model type: its elastic one, and the fields that decide what its parameters compute.
_ARCHITECTURE = {
    "dinov2": ("poa_vit", (*_VIT.split(), "mlp_ratio", "use_swiglu_ffn")),
    "vit": ("poa_vit", (*_VIT.split(), "mlp_ratio", "use_swiglu_ffn")),
    "swin": (
        "poa_swin",
        tuple(
            "embed_dim depths num_heads window_size mlp_ratio qkv_bias hidden_act layer_norm_eps patch_size "
            "num_channels use_absolute_embeddings".split()
        ),
    ),
    "gn_resnet": (
        "poa_resnet",
        tuple(
            "embedding_size hidden_sizes depths base_width num_groups hidden_act layer_norm_eps num_channels".split()
        ),
    ),
}
_ARCHITECTURE |= {elastic: (elastic, fields) for elastic, fields in list(_ARCHITECTURE.values())}
SUPPORTED = "dinov2, vit, swin, gn_resnet"
_WEIGHT_FILES = (".pth", ".pt", ".bin", ".safetensors")
# Why a field is the source's; of the others a different value would simply be other parameters.
_REASONS = {
    "patch_size": "a patch embedding for other patches would compute something else",
    "window_size": "the relative position bias is that of its windows",
    "layer_norm_eps": "its function depends on it",
}


@dataclass(frozen=True)
class Source:
    """A model to start from, of which no weights have been read yet.

    `kind` is `stock` (a checkpoint of transformers, of gn_resnet or of an elastic backbone), `run` (teacher, student
    and heads of a pre-training run) or `official` (a file of the authors'). `config` is that of the stock model, or of
    the run's backbone; None of a file, which has none. `name` is what it is called in sentences and records: a Hub id,
    or the last part of a path.
    """

    name: str
    kind: str
    location: str | Path
    config: PreTrainedConfig | None = None
    run_config: PoaConfig | None = None


def find_source(source: str | Path) -> Source:
    """What there is at a local path or under a Hub id.

    Raises:
        ValueError: If nothing is there, it cannot be read, or is a model that no elastic family can hold.
    """
    path = Path(source).expanduser()
    named = str(source).strip()
    if path.is_file():
        return Source(shown_name(path), "official", path)
    if named and path.is_dir():
        if not (path / CONFIG).exists() and not checkpoints_with_model(path):
            raise ValueError(f"{source} holds neither a model ({CONFIG}) nor a run's checkpoints.")
        location = resolve_run(path)
        return _from_config(shown_name(path), location, "cannot be loaded")
    looks_local = named.startswith((".", "/", "~")) or named.count("/") > 1
    if not named or looks_local or path.suffix in _WEIGHT_FILES:
        raise ValueError(
            f"There is nothing at {str(source)!r} to start from: give a model's folder or Hub id, a run, or a file of "
            "the authors'."
        )
    return _from_config(str(source), str(source), "is neither a folder nor a model of the Hub that can be loaded")


def shown_name(path: Path) -> str:
    """A path's last part, and its run's before it for a checkpoint: without where on a machine it lies."""
    path = path.resolve()
    return f"{path.parent.name}/{path.name}" if path.name.startswith("checkpoint-") else path.name


def _from_config(name: str, location: str | Path, failure: str) -> Source:
    try:
        content, _ = PreTrainedConfig.get_config_dict(location)
        model_type = content.get("model_type")
        if model_type == "poa":
            run = PoaConfig.from_pretrained(location)
            return Source(name, "run", location, run.backbone_config, run)
        if model_type not in _ARCHITECTURE:
            _refuse(name, model_type)
        config = CONFIG_MAPPING[model_type].from_pretrained(location)
    except (OSError, StrictDataclassError, TypeError, AttributeError) as error:
        raise ValueError(f"{name} {failure} ({sentence(error)}): give another model to start from.") from error
    return Source(name, "stock", location, config)


def _refuse(name: str, model_type: str | None) -> None:
    if model_type == "dinov2_with_registers":
        raise ValueError(
            f"{name} has register tokens, which the elastic ViT and stock dinov2 lack: start from the same model "
            "without registers, as facebook/dinov2-large is."
        )
    what = f"is a {model_type!r} model" if model_type else "says no model_type in its config.json"
    raise ValueError(f"{name} {what}: an elastic model can start from {SUPPORTED}, a run, or a file of the authors'.")


def architecture(source: Source) -> dict:
    """The fields of the elastic configuration that only the source can decide, with `model_type`."""
    config = source.config
    model_type, names = _ARCHITECTURE[config.model_type]
    if hasattr(config, "head_dim"):
        raise ValueError(f"{source.name} has head_dim {config.head_dim}, for which the elastic ViT has no place.")
    fields = {name: _plain(name, getattr(config, name, None)) for name in names}
    if config.model_type == "vit":
        fields["mlp_ratio"], rest = divmod(config.intermediate_size, config.hidden_size)
        if rest:
            raise ValueError(
                f"{source.name} has intermediate_size {config.intermediate_size}, which is no multiple of its "
                f"hidden_size {config.hidden_size}: the elastic ViT needs one."
            )
        fields["use_swiglu_ffn"] = False
    return {"model_type": model_type, **fields}


def _plain(name: str, value):
    """As configurations may also be written: sides of squares as one number, several numbers as a list."""
    if isinstance(value, list | tuple):
        value = list(value)
        if name in ("image_size", "patch_size") and len(set(value)) == 1:
            return value[0]
    return value


def check_same(source: Source, fields: Mapping) -> None:
    """ValueError for the first of an elastic configuration's fields that is not the source's; those that are None or
    not there are not looked at."""
    for name, theirs in architecture(source).items():
        ours = _plain(name, fields.get(name))
        if ours is None or ours == theirs:
            continue
        if name == "model_type":
            raise ValueError(
                f"model_type is {ours}, but {source.name} is a {source.config.model_type!r} model: leave it out, or "
                f"give {theirs}."
            )
        reason = f" ({_REASONS[name]})" if name in _REASONS else ""
        raise ValueError(
            f"{name} is {ours}, but {source.name} has {theirs}: leave it out, as the full size is that of the "
            f"source{reason}, or start from another model."
        )


def backbone_fields(source: Source, given: Mapping) -> dict:
    """The fields of an elastic configuration that starts from the source: `given` ones (which may not contradict it),
    and the source's own for the others. The smallest size of a run is that run's, unless given.

    Raises:
        ValueError: If a given field is not the source's.
    """
    if source.config is None:
        return dict(given)
    check_same(source, given)
    fixed = architecture(source)
    config = source.config
    defaults = {"image_size": _plain("image_size", config.image_size)}
    if config.model_type == fixed["model_type"]:  # elastic itself
        names = {name for name in config.to_dict() if name.startswith("min_") or name.endswith("_step")}
        defaults |= {name: _plain(name, getattr(config, name)) for name in {*names, "sampling_bias"}}
    if fixed["model_type"] == "poa_vit":
        defaults["layerscale_value"] = getattr(config, "layerscale_value", 1.0)
    given = {name: value for name, value in given.items() if value is not None}
    if config.model_type == "swin" and "embed_dim_step" not in given:
        # of few heads: the published 3/4 of the width would leave only the full one, hence one step less
        plain = CONFIG_MAPPING["poa_swin"](**defaults, **{n: v for n, v in fixed.items() if n != "model_type"})
        if plain.min_embed_dim == plain.embed_dim > plain.embed_dim_step:
            defaults["min_embed_dim"] = plain.embed_dim - plain.embed_dim_step
    return {**defaults, **fixed, **given}


def warm_start_config(source: str | Path, **fields) -> PreTrainedConfig:
    """The elastic backbone configuration whose full size is a pre-trained model's, for `init_from`.

    Args:
        source: As `init_from` takes it, but for files of the authors', which say nothing of their configuration.
        fields: Of the elastic configuration: the smallest size, the steps, another `image_size`. By default the space
            has the published proportions, rounded to whole heads.

    Raises:
        ValueError: If a field contradicts the source, or the source cannot be one.
    """
    found = find_source(source)
    if found.config is None:
        raise ValueError(f"{source} is a file without a configuration: give the one that it was trained with.")
    merged = backbone_fields(found, fields)
    return CONFIG_MAPPING[merged.pop("model_type")](**merged)


def normalisation(source: Source) -> dict[str, list[float]]:
    """`image_mean` and `image_std` that the source was trained with; nothing where its image processor doesn't say."""
    if source.kind == "official":
        return {}
    try:
        content, _ = ImageProcessor.get_image_processor_dict(source.location)
    except (OSError, ValueError):
        return {}
    if content.get("do_normalize") is False:
        return {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    found = {name: content.get(name) for name in ("image_mean", "image_std")}
    if any(not isinstance(values, list) or len(values) != 3 for values in found.values()):
        return {}
    return found


def sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".")
