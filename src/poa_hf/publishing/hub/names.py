"""What published repos are called."""

from __future__ import annotations

import string
from collections.abc import Iterable

from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedConfig

from ...elastic import SubNetwork

NAME_TEMPLATE = "poa-{family}-{size}-extracted"
_FIELDS = ("family", "size", "width", "depth")


def family_of(config: PreTrainedConfig) -> str:
    """`vit`, `swin`, `resnet`: the backbone's model type without the prefix that elastic ones have."""
    return config.model_type.removeprefix("poa_").replace("_", "-")


def size_title(config: PreTrainedConfig, sub_network: SubNetwork) -> str:
    """`s` for a named size (`50` for one named by a number), else `w448-d14`."""
    names = [name for name, named in config.space.named.items() if named == sub_network]
    if names:  # where the smallest size is the base size too, the larger name tells more
        return names[-1] if names[-1].isdigit() else names[-1][0]
    return f"w{sub_network.width}-d{'-'.join(map(str, sub_network.depths))}"


def repo_name(config: PreTrainedConfig, sub_network: SubNetwork, template: str = NAME_TEMPLATE) -> str:
    """The name of the repo of one size, without the namespace.

    Fields of `template`: `family`; `size`, as `s` or `w448-d14`; `width`; `depth`, as `14` or `2-2-6-2`. ValueError for
    any other.
    """
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ValueError(
            f"--name_template {template!r} is not a template ({error}): write {NAME_TEMPLATE!r}."
        ) from error
    unknown = [field for field in fields if field not in _FIELDS]
    if unknown:
        known = ", ".join(f"{{{field}}}" for field in _FIELDS)
        raise ValueError(f"--name_template has no field {{{unknown[0]}}}: use {known}.")
    return template.format(
        family=family_of(config),
        size=size_title(config, sub_network),
        width=sub_network.width,
        depth="-".join(map(str, sub_network.depths)),
    )


def supernet_name(config: PreTrainedConfig, template: str = NAME_TEMPLATE) -> str:
    """The name of the repo of teacher, student and heads: that of the full size, `-supernet` for `-extracted`."""
    return f"{repo_name(config, config.space.full, template).removesuffix('-extracted')}-supernet"


def repo_ids(
    config: PreTrainedConfig, sizes: Iterable[SubNetwork], namespace: str, template: str = NAME_TEMPLATE
) -> tuple[str, dict[SubNetwork, str]]:
    """The ids of the supernet's repo and of those of `sizes`.

    Raises:
        ValueError: If the Hub would not take one of them, or two are the same but for upper and lower case.
    """
    supernet = f"{namespace}/{supernet_name(config, template)}"
    ids = {size: f"{namespace}/{repo_name(config, size, template)}" for size in sizes}
    seen: dict[str, str] = {}
    for what, repo_id in [("the supernet", supernet), *((str(size), repo_id) for size, repo_id in ids.items())]:
        try:
            validate_repo_id(repo_id)
            if repo_id.count("/") != 1 or not namespace:
                raise ValueError("A namespace and a name are needed")
        except ValueError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(
                f"{repo_id!r} is no name for a repo ({reason}): give another --namespace or --name_template."
            ) from error
        if repo_id.lower() in seen:
            raise ValueError(
                f"--name_template {template!r} calls both {seen[repo_id.lower()]} and {what} {repo_id}: use "
                "{size}, or {width} and {depth}."
            )
        seen[repo_id.lower()] = what
    return supernet, ids
