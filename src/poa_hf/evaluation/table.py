"""Evaluations of one model on one dataset as a table of text."""

from __future__ import annotations

from collections.abc import Sequence

from ..runs.comparison import images_of
from ..runs.evaluations import Evaluation
from ..runs.metrics import column_title


def results_table(records: Sequence[Evaluation]) -> str:
    """Return a table of records of one model on one dataset: sizes as rows, metrics as columns, in per cent."""
    first = records[0]
    train = next((record for record in records if record.train_images is not None), None)
    step = f" at step {first.step:,}" if first.step is not None else ""
    columns = list(dict.fromkeys(map(column_title, records)))
    rows: dict[str, dict[str, float]] = {}
    for record in records:
        rows.setdefault(record.size, {})[column_title(record)] = record.value
    widths = [max(6, len(title)) for title in columns]
    lead = max(4, *(len(size) for size in rows))
    lines = [f"{first.model}{step} on {first.dataset}, in % ({images_of(train or first)})", ""]
    titles = "  ".join(f"{title:>{width}}" for title, width in zip(columns, widths, strict=True))
    lines.append(f"{'size':<{lead}}  {titles}")
    for size, values in rows.items():
        numbers = [f"{100 * values[title]:.1f}" if title in values else "-" for title in columns]
        cells = (f"{number:>{width}}" for number, width in zip(numbers, widths, strict=True))
        lines.append(f"{size:<{lead}}  {'  '.join(cells)}")
    return "\n".join(lines)
