"""What the page of a run shows, without pictures of images: facts, charts and the table of sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..formatting import format_quantity
from ..models.elastic_config import image_shape
from ..runs.comparison import Comparison, choose_by
from ..runs.facts import RunFacts
from ..runs.layout import RunFolder
from ..selection.costs import Costs, costs
from ..selection.latency_table import read_latencies
from ..selection.select import select
from ..sub_network import SubNetwork
from .curves import curves_section
from .numbers import collapse_section, entry, loss_section, numeric, series
from .quality import quality_sections
from .section import Section
from .sizes import size_columns, size_name


@dataclass(frozen=True)
class RunContent:
    """What is known of a run, read once.

    Args:
        facts: What the run has written down.
        folder: The run's folder.
        sizes: The costs of each size; empty if the model is not known.
        measured: The evaluation that counts; None if there is none.
        latencies: The measured latencies of sizes, by their titles.
    """

    facts: RunFacts
    folder: RunFolder
    sizes: Mapping[SubNetwork, Costs] = field(default_factory=dict)
    measured: Comparison | None = None
    latencies: Mapping[str, Mapping[SubNetwork, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: RunFacts, quality: str | None, before: RunContent | None = None) -> RunContent:
        """Read the latencies of a run, and choose the evaluation that counts.

        Args:
            facts: What the run has written down.
            quality: The task or metric that charts show first; by default k-NN, a linear probe or what was measured.
            before: What was known of the run before: costs of the same model are not computed again.
        """
        folder = facts.folder or RunFolder.containing(facts.name)
        if facts.config is None:
            return cls(facts, folder)
        measured = _measured(facts, quality)
        known = None if before is None else before.facts.config
        if before is not None and before.sizes and known is not None and known.to_dict() == facts.config.to_dict():
            sizes = before.sizes
        else:
            sizes = costs(facts.backbone)
        return cls(facts, folder, sizes, measured, read_latencies(folder, facts.backbone))

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The lines of the log with the values that can be drawn."""
        return numeric(self.facts.log)

    def sections(self, quality: str | None) -> list[Section]:
        """Make the sections of numbers."""
        table = Section("sizes", "Sizes")
        if not self.sizes:
            table.missing.append((self.facts.no_model, None))
        curves = curves_section(self.facts, self.sizes)
        return [
            *quality_sections(self.facts, self.measured, self.sizes, self.latencies, quality),
            *([] if curves is None else [curves]),
            table,
            loss_section(self.facts, self.log),
            collapse_section(self.facts, self.log),
        ]

    @property
    def shown(self) -> dict[str, Any]:
        """What the template needs besides the sections."""
        return {
            "name": self.folder.path.name,
            "facts": self.headline,
            "columns_of_sizes": size_columns(self.facts, self.sizes, self.latencies),
            "sizes": [(size, size_name(self.facts.space, size)) for size in self.sizes],
            "pixels": image_shape(self.facts.backbone)[1] if self.sizes else None,
        }

    @property
    def headline(self) -> list[tuple[str, str]]:
        """The most important facts of a run, by title."""
        facts, measured, shown = self.facts, self.measured, []
        if self.sizes:
            parameters = [cost.parameters for cost in self.sizes.values()]
            shown += [
                ("family", facts.backbone.family or facts.backbone.model_type),
                ("sizes", str(len(self.sizes))),
                ("parameters", f"{format_quantity(min(parameters))} to {format_quantity(max(parameters))}"),
            ]
        if log := self.log:
            planned = facts.arguments.get("max_steps")
            shown.append(("steps", f"{log[-1]['step']:,}" + (f" of {planned:,}" if isinstance(planned, int) else "")))
        if losses := series(log, entry("loss"))[1]:
            shown.append(("last loss", f"{losses[-1]:.3f}"))
        if facts.dataset:
            shown.append(("trained on", facts.dataset))
        if measured is not None:
            best = select(facts.space, costs=self.sizes, quality=measured.worth).best
            shown.append((f"best {measured.title}", f"{measured.kind.shown(measured.values[best])} ({best})"))
        return shown


def _measured(facts: RunFacts, quality: str | None) -> Comparison | None:
    """Return the evaluation that counts for a task or metric; None if it was not measured, perhaps not yet."""
    try:
        return choose_by(facts.comparisons, quality)
    except ValueError:
        return None
