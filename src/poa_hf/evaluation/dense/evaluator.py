"""Evaluation of patch features: predictors are made of samples of the train split, then the test split is measured.

With several processes, each computes its share of both splits, and makes the predictors of its share of the sizes,
which all then use.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from ...data.shards import refuse_split_stream
from ..data.coinciding import coinciding, warn_of_coinciding
from ..images.measured import warn_of_pretraining
from ..opened import opened
from ..processes import Processes
from ..record import Measurement, record_of
from ..splits import EvaluationData
from ..subject import ONE_SIZE, Subject
from ..tasks.dense_task import DenseTask, Example, Fitted
from .features import patch_features_of
from .images import DenseImages
from .passes import Key, PassResult, run_pass
from .pixel_values import read_depth, read_mask
from .prepared import ExampleBatch, Preparation, Reader, row_error

logger = logging.getLogger(__name__)

# patches or pixels that are kept of the train split, and of each image of it
MOST_SAMPLES, MOST_OF_IMAGE, FEWEST_OF_IMAGE = 2**17, 1024, 16
KINDS_OF_SAMPLES = 2  # pixels for linear classifiers, patches for k-NN
Result = TypeVar("Result")


@dataclass(frozen=True)
class DenseWork:
    """One evaluation of patch features as a process sees it. See `evaluate_sizes` for the attributes."""

    subject: Subject
    data: EvaluationData[DenseImages]
    tasks: Sequence[DenseTask[Any]]
    options: Any
    processes: Processes
    batch_size: int
    num_workers: int
    bf16: bool

    @property
    def train(self) -> DenseImages | None:
        """The train split, if a task needs it."""
        return self.data.train if any(task.needs_train for task in self.tasks) else None

    @property
    def quota(self) -> int:
        """The number of patches or pixels that are kept of a train image at most."""
        images = 1 if self.train is None else max(1, len(self.train))
        return min(MOST_OF_IMAGE, max(FEWEST_OF_IMAGE, MOST_SAMPLES // images))

    @property
    def num_vectors(self) -> int:
        """The number of feature vectors of a size that a pass keeps in memory, in all processes together."""
        return 0 if self.train is None else KINDS_OF_SAMPLES * self.quota * len(self.train) * self.processes.count

    @property
    def side(self) -> int:
        """The short side of the images that the model gets, in pixels."""
        return self.options.dense_image_size or min(self.subject.image_size)

    def measurements(self, sizes: Sequence[str], quiet: bool, outcomes: bool) -> tuple[list[Measurement], list[str]]:
        """Make a pass over both splits, and measure the sizes that this process owns.

        Returns:
            What was measured, and the names of the test images.
        """
        owners = {size: index % self.processes.count for index, size in enumerate(sizes)}
        preparation = self._preparation(sizes)
        train, quota = None, self.quota
        if self.train is not None:
            train = self._pass(self.train, sizes, preparation, owners, quiet, partial(self._sample, quota))
        fitted = self._fitted(owners, train)
        test = self._pass(self.data.test, sizes, preparation, owners, quiet, partial(self._measure, fitted))
        measured = self._of_all(lambda: list(self._measured(owners, train, fitted, test, quiet)))
        if not outcomes:
            measured = [replace(each, outcomes=None) for each in measured]
        return measured, [image.name for image in test.ids]

    def _preparation(self, sizes: Sequence[str]) -> Preparation:
        with opened(self.subject.model, _of_model(sizes[0])) as run:
            stride = run.stride
        readers: dict[str, Reader] = {"mask": read_mask, "depth": partial(read_depth, scale=self.options.depth_scale)}
        return Preparation(self.subject.processor, self.side, stride, readers, self.tasks, self.options)

    def _pass(
        self,
        split: DenseImages,
        sizes: Sequence[str],
        preparation: Preparation,
        owners: Mapping[str, int],
        quiet: bool,
        keep: Callable[[str, Example, dict[str, Tensor]], dict[Key, Tensor]],
    ) -> PassResult:
        def visit(batch: ExampleBatch) -> Iterator[dict[Key, Tensor]]:
            device = self.processes.device
            for size in sizes:
                patches = patch_features_of(
                    self.subject, _of_model(size), batch.examples, device, self.bf16, self.batch_size
                )
                for example, features in zip(batch.examples, patches, strict=True):
                    try:
                        yield keep(size, example, features)
                    except ValueError as error:
                        raise ValueError(row_error(example.name, split.name, error)) from error

        refuse_split_stream(split.dataset, self.processes.count)
        processes, batch_size, workers = self.processes, self.batch_size, self.num_workers
        return run_pass(split, preparation, visit, owners, processes, batch_size, workers, quiet)

    def _sample(self, quota: int, size: str, example: Example, patches: dict[str, Tensor]) -> dict[Key, Tensor]:
        return {
            (size, task.name, name): rows
            for task in self.tasks
            if task.needs_train
            for name, rows in task.collect(patches[""], example, quota, self.options).items()
        }

    def _measure(
        self,
        fitted: dict[str, dict[str, Fitted]],
        size: str,
        example: Example,
        patches: dict[str, Tensor],
    ) -> dict[Key, Tensor]:
        return {
            (size, task.name): task.measure(
                fitted[size][task.name], patches[""], patches.get(task.name), example, self.options
            )[None]
            for task in self.tasks
        }

    def _fitted(self, owners: Mapping[str, int], train: PassResult | None) -> dict[str, dict[str, Fitted]]:
        """Make the predictors of the sizes that this process owns, and return those of all, on the device."""

        def fit(size: str, task: DenseTask[Any]) -> Fitted:
            if train is None or self.data.train is None or not task.needs_train:
                return {}
            samples = {key[2]: rows for key, rows in train.rows.items() if key[:2] == (size, task.name)}
            return task.fit(samples, self.data.train.name, self.options, self.processes.device)

        def fit_mine() -> dict[str, dict[str, Fitted]]:
            mine = [size for size, owner in owners.items() if owner == self.processes.rank]
            return {size: {task.name: fit(size, task) for task in self.tasks} for size in mine}

        mine = self._of_all(fit_mine)
        device = self.processes.device
        return {
            size: {
                name: {key: value.to(device) if isinstance(value, Tensor) else value for key, value in fitted.items()}
                for name, fitted in by_task.items()
            }
            for part in self.processes.from_all(mine)
            for size, by_task in part.items()
        }

    def _of_all(self, work: Callable[[], Result]) -> Result:
        """Return what this process's work gives, or raise on all processes what one of them raised."""
        result, failure = None, None
        try:
            result = work()
        except ValueError as error:
            failure = str(error)
        for each in self.processes.from_all(failure):
            if each is not None:
                raise ValueError(each)
        assert result is not None
        return result

    def _measured(
        self,
        owners: Mapping[str, int],
        train: PassResult | None,
        fitted: dict[str, dict[str, Fitted]],
        test: PassResult,
        quiet: bool,
    ) -> Iterator[Measurement]:
        found = None if train is None else coinciding(train.ids, test.ids)
        if self.processes.is_main and not quiet:
            warn_of_pretraining(self.subject, self.data)
            warn_of_coinciding(found or [], len(test.ids))
        for size, owner in owners.items():
            for task in self.tasks if owner == self.processes.rank else ():
                uses_train = train is not None and task.needs_train
                for score in task.scores(
                    test.rows[size, task.name], fitted[size][task.name], self.data.test.name, self.options
                ):
                    score.settings["image_size"] = self.side
                    record = record_of(
                        self.subject,
                        self.data,
                        size,
                        task.name,
                        score,
                        train_images=len(train.ids) if train is not None and uses_train else None,
                        test_images=len(test.ids),
                        coinciding_images=len(found) if found is not None and uses_train else None,
                        skipped_images=test.skipped + (train.skipped if train is not None and uses_train else 0),
                        bf16=self.bf16,
                    )
                    yield Measurement.of_score(record, score)


def _of_model(size: str) -> str | None:
    """Return a size as `opened` takes it."""
    return None if size == ONE_SIZE else size
