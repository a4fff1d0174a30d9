"""`sizes.json` of a supernet's repository: a table of all sizes, for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...runs.comparison import choose
from ...sub_network import SubNetwork
from ..hub.names import family_name
from .facts import CardFacts


def size_table(facts: CardFacts, supernet: str | None, repos: Mapping[SubNetwork, str]) -> dict[str, Any]:
    """Return the content of `sizes.json`.

    Each size has its parameters, the FLOPs of one image (a multiplication and its addition are counted once), its
    measured accuracies from 0 to 1, and its repository; unknown values are None.

    Args:
        facts: The facts of the model.
        supernet: The id of the supernet's repository.
        repos: The ids of the published sizes' repositories.
    """
    config = facts.config.backbone_config
    names = {size: name for name, size in config.space.named.items()}
    quality = {metric: choose(facts.comparisons, [metric]) for metric in ("knn_accuracy", "linear_accuracy")}
    rows = []
    for size, cost in facts.costs.items():
        row: dict[str, Any] = {"size": str(size), "name": names.get(size)}
        row |= {"width": size.width, "depths": list(size.depths)}
        row |= {"parameters": cost.parameters, "flops": cost.flops}
        row |= {metric: comparison.values.get(size) if comparison else None for metric, comparison in quality.items()}
        rows.append({**row, "repo": repos.get(size)})
    return {
        "family": family_name(config),
        "supernet": supernet,
        "image_size": getattr(config, "image_size", None),
        "measured": {metric: comparison.description for metric, comparison in quality.items() if comparison},
        "sizes": rows,
    }


def published_sizes(table: bytes) -> dict[SubNetwork, str]:
    """Return the repositories of the published sizes that a `sizes.json` names; none if it is not a table of sizes."""
    try:
        rows = json.loads(table)["sizes"]
        return {SubNetwork.parse(row["size"]): row["repo"] for row in rows if row.get("repo")}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
