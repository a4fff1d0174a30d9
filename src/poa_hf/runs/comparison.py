"""Which records can be compared, and which of them counts where one number per size is wanted.

A run's evaluations.json may hold many numbers of one size: of several datasets, splits, numbers of images, steps and
metrics. Numbers of two sizes can be compared only if they were measured alike, so nothing ever picks single records:
`compare` makes sets of records that differ in nothing but the size, and puts the sets in the one order in which they
count. The tables, pictures and metadata of model cards, `sizes.json`, `poa report` and `poa select` all take the first
set that has what they need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..sub_network import SubNetwork
from .evaluations import Evaluation
from .metrics import Metric, check_measure, column_title, display_order, metric_name, metric_of

USUAL_K = 20  # the number of neighbours that papers report
_TOO_LARGE = 1e100  # for any metric, and to compute with


@dataclass(frozen=True)
class Comparison:
    """Records of several sizes that can be compared.

    They agree in dataset, configuration, splits, image counts, step, metric and settings.

    Args:
        records: One record per size, at least one in all.
    """

    records: Mapping[SubNetwork, Evaluation]

    @property
    def example(self) -> Evaluation:
        """One of the records, for the fields in which all agree."""
        return next(iter(self.records.values()))

    @property
    def values(self) -> dict[SubNetwork, float]:
        """The measured number of each size; `worth` says which are better."""
        return {size: record.value for size, record in self.records.items()}

    @property
    def worth(self) -> dict[SubNetwork, float]:
        """A number per size that is higher the better the size is: the value, or its negative for an error."""
        return {size: self.kind.worth(value) for size, value in self.values.items()}

    @property
    def intervals(self) -> dict[SubNetwork, tuple[float, float]]:
        """The ends of the interval of each size's value, where it is known."""
        known = {size: record.interval for size, record in self.records.items() if record.interval}
        return {size: (ends[0], ends[1]) for size, ends in known.items() if max(map(abs, ends)) < _TOO_LARGE}

    @property
    def best(self) -> SubNetwork:
        """The size with the best value; of several, the first."""
        return max(self.worth, key=self.worth.__getitem__)

    @property
    def kind(self) -> Metric:
        """What is measured: how its values are written, and which of them are better."""
        return metric_of(self.example)

    @property
    def metric(self) -> str:
        return self.example.metric

    @property
    def step(self) -> int | None:
        return self.example.step

    @property
    def title(self) -> str:
        """The metric in a few characters, such as `20-NN`."""
        return column_title(self.example)

    @property
    def metric_name(self) -> str:
        """The metric in words, such as `20-NN accuracy`."""
        return metric_name(self.example)

    @property
    def name(self) -> str:
        """The metric, the dataset and the step, such as `20-NN accuracy on birds at step 50`."""
        step = "" if self.step is None else f" at step {self.step:,}"
        return f"{self.metric_name} on {self.example.dataset}{step}"

    @property
    def description(self) -> str:
        """The name, and the images as `images_of` writes them in brackets."""
        return f"{self.name} ({images_of(self.example)})"


def images_of(record: Evaluation) -> str:
    """The images that a number rests on, such as `100 test images classified by 200 train images`.

    For a hold-out, `; test images: 20 % of train, held out at random by class, seed 0` follows.
    """
    text = _count(record.test_images, record.test_split if record.holdout is None else "test")
    if record.train_images is not None:
        text += f" classified by {_count(record.train_images, record.train_split or 'train')}"
    if record.holdout is not None:
        share = f"{100 * record.holdout:g} % of {record.test_split}"
        text += f"; test images: {share}, held out at random by class, seed {record.holdout_seed}"
    return text


def _count(number: int, split: str) -> str:
    return f"{number:,} {split} image{'' if number == 1 else 's'}"


def compare(records: Iterable[Evaluation], sizes: Iterable[SubNetwork], step: int | None = None) -> list[Comparison]:
    """Put records into sets that can be compared, the set that counts most first.

    Two records are in one set if they agree in dataset and its configuration, test and train split, share and seed of a
    hold-out, the numbers of test and train images, step, task, metric and settings (k, temperature, share of labels,
    seed, ...). The name of the
    model plays no role, since a run's folder may have been renamed. If a set has several records of a size, that of the
    latest day counts, and of the same day the last one. Records are left out if their value is no number to compute
    with or they are of no size in `sizes`, such as a stock checkpoint's, `-`.

    The order of two sets is decided by the first of these criteria in which they differ:

    1. the step: that of the model; then an unknown one; then the nearest, of two equally near the earlier;
    2. k of k-NN: the nearest to 20, of two equally near the smaller;
    3. of a metric that is measured in several ways, the usual one, such as occlusion of random patches;
    4. the number of sizes: more;
    5. the number of test images: more;
    6. the number of train images: more;
    7. the latest day of a record: later;
    8. what the records have in common, as text, so that the order never depends on that of the records.

    Args:
        records: Evaluations of one run, in the order in which they were made.
        sizes: The sizes of the run's space.
        step: The step of the model that the numbers are wanted for; None if it is not known; the latest step
            then counts as the nearest.
    """
    by_name = {str(size): size for size in sizes}
    sets: dict[str, dict[SubNetwork, Evaluation]] = {}
    for record in records:
        if record.size in by_name and abs(record.value) < _TOO_LARGE:  # nor NaN
            members = sets.setdefault(_common_key(record), {})
            size = by_name[record.size]
            if size not in members or members[size].date <= record.date:
                members[size] = record
    # two passes, as days are compared the other way round
    ordered = sorted(sets.items())
    ordered.sort(key=lambda item: max(record.date for record in item[1].values()), reverse=True)
    comparisons = [Comparison(dict(sorted(members.items()))) for _, members in ordered]
    return sorted(comparisons, key=lambda comparison: _rank(comparison, step))


def choose(
    comparisons: Sequence[Comparison], metrics: Sequence[str] = ("knn_accuracy", "linear_accuracy")
) -> Comparison | None:
    """The set that counts for the quality of the sizes: the first one of the first metric that was measured at all.

    None if no metric was. Where one number per size is shown (a picture, a table of sizes), it is taken from here.
    """
    for metric in metrics:
        for comparison in comparisons:
            if comparison.metric == metric:
                return comparison
    return None


def choose_by(comparisons: Sequence[Comparison], measure: str | None) -> Comparison | None:
    """The set that counts for a task or a metric.

    Args:
        comparisons: The result of `compare`.
        measure: A task of `poa evaluate`, of whose metrics the first in `METRICS` that was measured counts; a metric;
            or one as tables and text call it, such as `10-NN`, `1 % labels` or `clustering NMI`. If None: k-NN, else a
            linear probe, else the first one in `METRICS`.

    Returns:
        The set; None if nothing was measured at all.

    Raises:
        ValueError: If other measures were taken but not this one (with their names), or there is no such measure.
    """
    for comparison in comparisons:
        if measure in (comparison.title, comparison.metric_name):
            return comparison
    ordered = sorted({each.metric: each for each in comparisons}.values(), key=lambda each: display_order(each.example))
    if measure is None:
        return choose(comparisons, ["knn_accuracy", "linear_accuracy", *(each.metric for each in ordered)])
    metrics = [each.metric for each in ordered if measure in (each.example.task, each.metric)]
    if metrics:
        return choose(comparisons, metrics)
    if tasks := list(dict.fromkeys(each.example.task for each in ordered)):
        names = ", ".join(tasks)
        raise ValueError(f"{measure!r} was not measured: choose from {names}, or measure it by poa evaluate.")
    check_measure(measure)
    return None


def one_per_measure(comparisons: Iterable[Comparison], size: SubNetwork | None = None) -> list[Comparison]:
    """Keep one set per measure, the one that counts: the first, or the first that has `size`.

    A measure is a metric (k and the share of labels included) on a test split of a dataset, a hold-out of another share
    or seed being another one: what a reader would take
    for the same number. The set that `choose` gives is the one of its measure for each size that it has, so a list of
    results never contradicts a table of sizes.
    """
    first: dict[tuple, Comparison] = {}
    for comparison in comparisons:
        if size is None or size in comparison.records:
            record = comparison.example
            measure = (record.test_set, metric_name(record))
            first.setdefault(measure, comparison)
    return list(first.values())


def _common_key(record: Evaluation) -> str:
    return replace(record, size="", model="").key


def _rank(comparison: Comparison, step: int | None) -> tuple:
    record = comparison.example
    k = record.settings.get("k", USUAL_K) if record.metric == "knn_accuracy" else USUAL_K
    images = (-record.test_images, -(record.train_images or 0))
    is_unusual = not metric_of(record).is_usual(record.settings)
    return (*_step_rank(record.step, step), abs(k - USUAL_K), k, is_unusual, -len(comparison.records), *images)


def _step_rank(step: int | None, wanted: int | None) -> tuple[int, int, int]:
    if step == wanted:
        return 0, 0, 0
    if step is None:
        return 1, 0, 0
    return 2, -step if wanted is None else abs(step - wanted), step
