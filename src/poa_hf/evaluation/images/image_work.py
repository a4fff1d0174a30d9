"""The evaluation of sizes by one feature vector per image, as each process sees it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tqdm.auto import tqdm

from ...runs.evaluations import Evaluation
from ..alterations.alteration import Alteration, AlteredFeatures
from ..alterations.saliency import patch_saliency
from ..labelled import LabelledImages
from ..processes import Processes
from ..record import Measurement, record_of
from ..splits import EvaluationData
from ..subject import ONE_SIZE, Subject
from ..tasks import LabelledFeatures, Score, TaskOptions, need_backgrounds, need_train, run_task
from .layer_features import LayerFeatures
from .layers import layer_callables, layer_widths
from .measured import Measured, warn_of
from .split_features import ImageFeatures, image_features

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageWork:
    """One evaluation as a process sees it. See `evaluate_sizes` for the attributes.

    `alterations` are those that the tasks make of the test images, `views` those of the train images; `blocks` says of
    which blocks the features are needed too.
    """

    subject: Subject
    data: EvaluationData[LabelledImages]
    tasks: Sequence[str]
    options: TaskOptions
    alterations: Sequence[Alteration]
    views: Sequence[Alteration]
    blocks: str | None
    processes: Processes
    batch_size: int
    num_workers: int
    bf16: bool

    @property
    def train(self) -> LabelledImages | None:
        """The train split, if a task needs it."""
        return self.data.train if need_train(self.tasks) else None

    @property
    def variants(self) -> Mapping[str, LabelledImages]:
        """The variants of the test split, if a task needs them."""
        return self.data.variants if need_backgrounds(self.tasks) else {}

    @property
    def num_vectors(self) -> int:
        """The number of feature vectors of a size that a pass keeps in memory, those of altered images included."""
        tested = len(self.data.test) * (1 + len(self.alterations)) + sum(map(len, self.variants.values()))
        return tested + (len(self.train) * (1 + len(self.views)) if self.train is not None else 0)

    def widths(self, pooled: dict[str, int]) -> dict[str, int]:
        """Return the number of channels of each size's features, those of several layers included.

        Args:
            pooled: The number of channels of the model's own features.
        """
        return pooled if self.blocks is None else {size: sum(self.layer_widths(size)) for size in pooled}

    def layer_widths(self, size: str) -> tuple[int, ...]:
        """Return the number of channels of each layer's features, of a size."""
        return layer_widths(self.subject, [size], self.blocks or "", self.processes.device)[size]

    def say_cost(self, widths: dict[str, int]) -> None:
        """Say what the augmented views of the train images cost, before they are computed."""
        images = self.train.known_length if self.train is not None else None
        memory = f", {4e-9 * sum(widths.values()) * images * (1 + len(self.views)):.2g} GB in all" if images else ""
        logger.info(
            "The linear probe learns from %d augmented view%s of each train image, so reading the train split takes "
            "about %d times as long, and as much more memory for features%s.",
            len(self.views),
            "s" if len(self.views) > 1 else "",
            1 + len(self.views),
            memory,
        )

    def measurements(self, sizes: Sequence[str], quiet: bool, outcomes: bool) -> tuple[list[Measurement], list[str]]:
        """Make one pass over the images, and compute the tasks of the sizes whose features this process gets.

        Returns:
            What was measured, and the names of the test images.
        """
        train = self._features(self.train, sizes, quiet, self.views) if self.train is not None else None
        test = self._features(self.data.test, sizes, quiet, self.alterations)
        variants = {kind: self._features(images, sizes, quiet) for kind, images in self.variants.items()}
        measured = Measured.of_splits(self.data, train, test, variants)
        if self.processes.is_main and not quiet:
            warn_of(measured, self.subject, self.data, self.tasks, self.options)
        return self._scores(measured, outcomes), [image.name for image in test.ids]

    def _features(
        self, split: LabelledImages, sizes: Sequence[str], quiet: bool, alterations: Sequence[Alteration] = ()
    ) -> ImageFeatures:
        return image_features(
            self.subject.callables(sizes) if self.blocks is None else layer_callables(self.subject, sizes, self.blocks),
            split,
            self.subject.processor,
            {size: index % self.processes.count for index, size in enumerate(sizes)},
            self.processes,
            self.batch_size,
            self.num_workers,
            self.bf16,
            quiet,
            alterations,
            patch_saliency(self.subject.model),
        )

    def _scores(self, measured: Measured, outcomes: bool) -> list[Measurement]:
        train, test = measured.train, measured.test
        measurements = []
        hidden = None if self.processes.is_main else True  # None: hidden where the output is no terminal
        with tqdm(total=len(test.features) * len(self.tasks), unit="task", leave=False, disable=hidden) as progress:
            for size in test.features:
                memory = self._with_layers(measured.train_features(size), size) if train else None
                queries = self._with_layers(measured.test_features(size), size)
                for task in self.tasks:
                    progress.set_description(f"{size} {task}" if size != ONE_SIZE else task)
                    scores = run_task(task, memory, queries, measured.num_classes, self.options, self.processes.device)
                    for score in scores:
                        record = self._record(measured, size, task, score)
                        measurements.append(Measurement.of_score(record, score) if outcomes else Measurement(record))
                    progress.update()
        return measurements

    def _with_layers(self, features: LabelledFeatures, size: str) -> LabelledFeatures:
        """Tell the model's own features and those of its layers apart, if a task needs layers."""
        if self.blocks is None:
            return features
        layers = LayerFeatures(features.features, self.layer_widths(size))
        altered = {}
        for alteration, each in features.altered.items():
            of_altered = LayerFeatures(each.features, layers.widths)
            altered[alteration] = AlteredFeatures(of_altered.pooled, each.kept, of_altered)
        variants = {kind: self._with_layers(each, size) for kind, each in features.variants.items()}
        return replace(features, features=layers.pooled, altered=altered, variants=variants, layers=layers)

    def _record(self, measured: Measured, size: str, task: str, score: Score) -> Evaluation:
        train, test = (measured.train if need_train([task]) else None), measured.test
        return record_of(
            self.subject,
            self.data,
            size,
            task,
            score,
            train_images=len(train.labels) if train else None,
            test_images=len(test.labels),
            coinciding_images=len(measured.coinciding) if train and measured.coinciding is not None else None,
            skipped_images=test.skipped + (train.skipped if train else 0),
            bf16=self.bf16,
        )
