"""Where the models of a family keep their blocks, and so which of them a sub-network takes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn

from .elastic import block_indices


@dataclass(frozen=True)
class SliceRules:
    """Where the models of a family keep their blocks and channel groups.

    Attributes:
        blocks: Where the stages keep their blocks, such as `encoder.layer.{block}` or
            `encoder.layers.{stage}.blocks.{block}`.
        grouped: Maps patterns of parameter names to the number of channel groups that lie side by side in the last axis
            of these parameters; each group is cut by itself.
    """

    blocks: str = ""
    grouped: dict[str, int] = field(default_factory=dict)

    def _match(self, name: str) -> re.Match[str] | None:
        if not self.blocks:
            return None
        pattern = (
            re.escape(self.blocks).replace(r"\{stage\}", r"(?P<stage>\d+)").replace(r"\{block\}", r"(?P<block>\d+)")
        )
        return re.match(pattern + r"\.", name)

    def source_name(self, name: str, full_depths: Sequence[int], depths: Sequence[int]) -> str:
        """Return the full model's name of the parameter that the sub-network calls `name`.

        Args:
            name: A parameter of the sub-network.
            full_depths: Blocks of each stage of the full model.
            depths: Blocks of each stage of the sub-network.
        """
        match = self._match(name)
        if match is None:
            return name
        stage = int(match.groupdict().get("stage", 0))
        block = block_indices(full_depths[stage], depths[stage])[int(match["block"])]
        return f"{name[: match.start('block')]}{block}{name[match.end('block') :]}"

    def layer_indices(self, names: Iterable[str], depths: Sequence[int]) -> dict[str, int]:
        """Return the layer of each parameter, as layer-wise learning rates count them.

        Parameters before all blocks are in layer 0, those of the first block in layer 1. Parameters between two blocks
        belong to the layer of the second, and those after all blocks form one more layer.

        Args:
            names: Parameters in their order from input to output.
            depths: Blocks of each stage.
        """
        names = list(names)
        matches = {name: self._match(name) for name in names}
        indices, index = {}, sum(depths) + 1
        for name in reversed(names):
            if match := matches[name]:
                index = 1 + sum(depths[: int(match.groupdict().get("stage", 0))]) + int(match["block"])
            indices[name] = index
        return indices | dict.fromkeys(itertools.takewhile(lambda name: matches[name] is None, names), 0)

    def is_in_block(self, name: str) -> bool:
        """Whether a parameter belongs to a block."""
        return self._match(name) is not None

    def block_names(self, model: nn.Module) -> list[str]:
        """Return the names of a model's blocks."""
        names = {name: self._match(f"{name}.") for name, _ in model.named_modules()}
        return [name for name, match in names.items() if match and match.end() == len(name) + 1]

    def groups(self, name: str) -> int:
        """Return the number of channel groups in the last axis of a parameter."""
        return next((groups for pattern, groups in self.grouped.items() if re.search(pattern, name)), 1)
