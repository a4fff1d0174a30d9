"""The names of published repositories."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ...formatting import one_line

if TYPE_CHECKING:  # the help of `poa push` shows the template, at once
    from transformers import PreTrainedConfig

    from ...sub_network import SubNetwork

NAME_TEMPLATE = "poa-{family}-{size}-extracted"
_FIELDS = ("family", "size", "width", "depth")


def family_name(config: PreTrainedConfig) -> str:
    """Return `vit`, `swin`, `dinov3-vit` and so on: the backbone's model type without the prefix of elastic models."""
    return config.model_type.removeprefix("poa_").replace("_", "-")


def published_names(config: PreTrainedConfig) -> Mapping[str, SubNetwork]:
    """Return the named sizes of a configuration whose sizes are those of a published family, otherwise none.

    In other spaces "small" or "large" is relative: a run's largest size may be smaller than ViT-S.
    """
    published = type(config)()  # the defaults of each family are the published space
    same = config.space.named == published.space.named and config.hidden_size == published.hidden_size
    return config.space.named if same else {}


def size_name(config: PreTrainedConfig, sub_network: SubNetwork) -> str:
    """Return the name of a size in the names of repositories.

    That is `s` for a size called small in the published space of the family, `50` for one whose name is a number, and
    `w448-d14` for all others.
    """
    names = [name for name, size in published_names(config).items() if size == sub_network]
    if names:  # if the smallest size is the base size too, the larger name says more
        return names[-1] if names[-1].isdigit() else names[-1][0]
    return f"w{sub_network.width}-d{_depth(sub_network)}"


def repo_name(config: PreTrainedConfig, sub_network: SubNetwork, template: str = NAME_TEMPLATE) -> str:
    """Return the name of a size's repository, without the namespace.

    >>> from poa_hf import PoaSwinConfig, SubNetwork
    >>> repo_name(PoaSwinConfig(), SubNetwork(112, (2, 2, 12, 2)))
    'poa-swin-w112-d2-2-12-2-extracted'
    >>> small = PoaSwinConfig(embed_dim=32, depths=[2, 2, 2, 2], min_embed_dim=16)
    >>> repo_name(small, small.space.named["tiny"])
    'poa-swin-w16-d1-2-2-2-extracted'

    Args:
        config: The elastic backbone's configuration.
        sub_network: The size.
        template: A format string with the fields `family`; `size`, such as `s` or `w448-d14`; `width`; and `depth`,
            such as `14` or `2-2-6-2`.

    Raises:
        ValueError: If the template is not a format string, has another field, or gives a field a format.
    """
    try:
        parts = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise ValueError(
            f"--name_template {template!r} is not a template ({one_line(error)}): write {NAME_TEMPLATE!r}."
        ) from error
    for _, field, spec, conversion in parts:
        if field not in _FIELDS:
            known = ", ".join(f"{{{field}}}" for field in _FIELDS)
            raise ValueError(f"--name_template has no field {{{field}}}: use {known}.")
        if spec or conversion:  # a width of billions would fill the memory
            raise ValueError(f"--name_template gives {{{field}}} a format: write {{{field}}} alone.")
    return template.format(
        family=family_name(config),
        size=size_name(config, sub_network),
        width=sub_network.width,
        depth=_depth(sub_network),
    )


def supernet_name(config: PreTrainedConfig, template: str = NAME_TEMPLATE) -> str:
    """Return the name of the supernet's repository: the full size's, with `-supernet` in place of `-extracted`."""
    return f"{repo_name(config, config.space.full, template).removesuffix('-extracted')}-supernet"


def repo_ids(
    config: PreTrainedConfig, sizes: Iterable[SubNetwork], namespace: str, template: str = NAME_TEMPLATE
) -> tuple[str, dict[SubNetwork, str]]:
    """Return the ids of the supernet's repository and of the sizes' repositories.

    Raises:
        ValueError: If the Hub would not take one of them, or if two differ in upper and lower case only.
    """
    from huggingface_hub.utils import validate_repo_id

    supernet = f"{namespace}/{supernet_name(config, template)}"
    ids = {size: f"{namespace}/{repo_name(config, size, template)}" for size in sizes}
    contents: dict[str, str] = {}  # what each repository holds, by its id in lower case
    for content, repo_id in [("the supernet", supernet), *((str(size), repo_id) for size, repo_id in ids.items())]:
        try:
            validate_repo_id(repo_id)
            if repo_id.count("/") != 1 or not namespace:
                raise ValueError("a namespace and a name are needed")
        except ValueError as error:
            raise ValueError(
                f"{repo_id!r} cannot be the name of a repo ({one_line(error)}): give another --namespace or "
                "--name_template."
            ) from error
        if repo_id.lower() in contents:
            raise ValueError(
                f"--name_template {template!r} gives {contents[repo_id.lower()]} and {content} the same name, "
                f"{repo_id}: use {{size}}, or {{width}} and {{depth}}."
            )
        contents[repo_id.lower()] = content
    return supernet, ids


def collection_title(config: PreTrainedConfig, supernet: str | None) -> tuple[str, str]:
    """Return the title and the description of a release's collection; the Hub takes 60 and 150 characters.

    Args:
        config: The elastic backbone's configuration.
        supernet: The id of the supernet's repository, if it is published.
    """
    if supernet:
        name = supernet.split("/")[1].removesuffix("-supernet")
    else:
        name = f"poa-{family_name(config)}-{size_name(config, config.space.full)}"
    title = f"{name}: one pre-training, all sizes" if len(name) <= 30 else name[:60]
    return title, f"{len(config.space)} sizes of one model, pre-trained once without labels (POA, arXiv 2408.01031)"


def _depth(sub_network: SubNetwork) -> str:
    return "-".join(map(str, sub_network.depths))
