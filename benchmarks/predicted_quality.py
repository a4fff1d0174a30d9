"""How far predicted qualities of sizes are off: most measured sizes of a run are hidden and predicted from the others.

    python benchmarks/predicted_quality.py runs/mine --measured 5 9 16

Of each measure that every size of the run has, some sizes are kept: the nine of smallest, middle and largest width and
depth, or as many at random as `--measured` says, several times. The table has the mean absolute error of the
predictions, the error that they state of themselves, and that of guessing the mean of the kept sizes; all in points.
The last line is one JSON object, whose ratio is that of the first of these errors to the third.
"""

import argparse
import json
import random
import statistics
from collections.abc import Iterator

from parts.machine import table_head, versions

from poa_hf import ElasticSpace, SubNetwork
from poa_hf.runs.comparison import Comparison, one_per_measure
from poa_hf.runs.facts import RunFacts
from poa_hf.selection.latency_table import grid
from poa_hf.selection.prediction import predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run whose sizes have all been evaluated")
    parser.add_argument("--measured", type=int, nargs="+", default=[5, 9, 16])
    parser.add_argument("--draws", type=int, default=20)
    options = parser.parse_args()
    facts = RunFacts.read(options.run)
    complete = [each for each in one_per_measure(facts.comparisons) if len(each.values) == len(facts.space)]
    if not complete:
        raise SystemExit(
            f"No measure of {options.run} has all of its {len(facts.space)} sizes: poa evaluate --sizes all."
        )
    print(table_head("predicted quality"))
    print(f"{len(facts.space)} sizes; means over the draws for which there is a prediction\n")
    titles = ("kept", "spread", "offered", "predicted", "off", "stated", "mean's")
    print(f"{'measure':<26}" + "".join(f"{title:>13}" for title in titles))
    rows = []
    for comparison in complete:
        for name, draws in kept_sizes(facts.space, options.measured, options.draws):
            found = errors(facts.space, comparison, draws)
            rows.append({"measure": comparison.metric_name, "kept": name, **found})
            cells = [f"{value:.2f}" if isinstance(value, float) else value for value in found.values()]
            print(f"{comparison.title:<26}{name:>13}" + "".join(f"{cell:>13}" for cell in cells))
    offered = [row for row in rows if "off" in row]
    ratio = sum(row["off"] for row in offered) / sum(row["mean's"] for row in offered) if offered else None
    if ratio is not None:
        print(f"\nThe error is {ratio:.2f} times that of the mean.")
    print(json.dumps({"ratio": ratio, **versions(), "rows": rows}))


def kept_sizes(space: ElasticSpace, counts: list[int], draws: int) -> Iterator[tuple[str, list[list[SubNetwork]]]]:
    """Yield names and choices of the sizes that are kept."""
    if len(grid(space)) < len(space):
        yield "grid", [grid(space)]
    generator = random.Random(0)
    for count in counts:
        if count >= len(space):
            continue
        yield f"{count} at random", [generator.sample(list(space), count) for _ in range(draws)]


def errors(space: ElasticSpace, comparison: Comparison, draws: list[list[SubNetwork]]) -> dict[str, float | str]:
    """Return the columns of one way to keep sizes."""
    values, found = comparison.values, []
    for kept in draws:
        known = {size: values[size] for size in kept}
        if (prediction := predict(space, known)) is not None:
            mean = statistics.mean(known.values())
            off = statistics.mean(abs(guess - values[size]) for size, guess in prediction.values.items())
            plain = statistics.mean(abs(mean - values[size]) for size in prediction.values)
            found.append((len(prediction.values), 100 * off, 100 * prediction.mean_error, 100 * plain))
    spread = 100 * (max(values.values()) - min(values.values()))
    columns: dict[str, float | str] = {"spread": spread, "offered": f"{len(found)}/{len(draws)}"}
    names = ("predicted", "off", "stated", "mean's")
    means = [float(statistics.mean(column)) for column in zip(*found, strict=True)]
    return columns | dict(zip(names, means, strict=False))  # without means, where nothing was offered


if __name__ == "__main__":
    main()
