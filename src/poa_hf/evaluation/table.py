"""Evaluations of one model on one dataset as a table of text."""

from __future__ import annotations

from collections.abc import Sequence

from ..runs.comparison import images_of
from ..runs.evaluations import Evaluation
from ..runs.metrics import column_title, metric_of


def results_table(records: Sequence[Evaluation]) -> str:
    """Return a table of records of one model on one dataset: sizes as rows, metrics as columns, in per cent."""
    first = records[0]
    train = next((record for record in records if record.train_images is not None), None)
    step = f" at step {first.step:,}" if first.step is not None else ""
    columns = list(dict.fromkeys(map(column_title, records)))
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        rows.setdefault(record.size, {})[column_title(record)] = metric_of(record).shown(record.value, unit=False)
    widths = [max(6, len(title)) for title in columns]
    lead = max(4, *(len(size) for size in rows))
    lines = [f"{first.model}{step} on {first.dataset}, in % ({images_of(train or first)})", ""]
    titles = "  ".join(f"{title:>{width}}" for title, width in zip(columns, widths, strict=True))
    lines.append(f"{'size':<{lead}}  {titles}")
    for size, values in rows.items():
        cells = (f"{values.get(title, '-'):>{width}}" for title, width in zip(columns, widths, strict=True))
        lines.append(f"{size:<{lead}}  {'  '.join(cells)}")
    return "\n".join(lines)
