"""Evaluations of one model on one dataset as a table of text."""

from __future__ import annotations

from collections.abc import Sequence

from ..formatting import listed
from ..runs.comparison import images_of
from ..runs.evaluations import Evaluation
from ..runs.metrics import column_title, metric_of

_MARGIN = "±"


def results_table(records: Sequence[Evaluation]) -> str:
    """Return a table of records of one model on one dataset: sizes as rows, metrics as columns, shares in per cent.

    A last row holds for each column how far its values may be off: half of the widest 95 % interval in it.
    """
    first = records[0]
    train = next((record for record in records if record.train_images is not None), None)
    step = f" at step {first.step:,}" if first.step is not None else ""
    columns = list(dict.fromkeys(map(column_title, records)))
    rows: dict[str, dict[str, str]] = {}
    widest: dict[str, float] = {}
    margins: dict[str, str] = {}
    for record in records:
        title, metric = column_title(record), metric_of(record)
        rows.setdefault(record.size, {})[title] = metric.shown(record.value, unit=False)
        if record.interval is not None:
            low, high = record.interval
            widest[title] = max(widest.get(title, 0.0), (high - low) / 2)
            margins[title] = metric.shown(widest[title], unit=False)
    if margins:
        rows[_MARGIN] = margins
    widths = [max(6, len(title)) for title in columns]
    lead = max(4, *(len(size) for size in rows))
    others = list(dict.fromkeys(column_title(record) for record in records if not metric_of(record).is_share))
    unit = "in %" + (f" except {listed(others)}" if others else "")
    lines = [f"{first.model}{step} on {first.dataset}, {unit} ({images_of(train or first)})", ""]
    titles = "  ".join(f"{title:>{width}}" for title, width in zip(columns, widths, strict=True))
    lines.append(f"{'size':<{lead}}  {titles}")
    for size, values in rows.items():
        cells = (f"{values.get(title, '-'):>{width}}" for title, width in zip(columns, widths, strict=True))
        lines.append(f"{size:<{lead}}  {'  '.join(cells)}")
    if margins:
        lines += [
            "",
            f"{_MARGIN} half of the widest 95 % interval of the column, for other test images of the same kind",
        ]
    return "\n".join(lines)
