"""Options may be numbers of NumPy, as those that a loop over an array gives; records hold Python's own."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from poa_hf.evaluation.alterations.alteration import AlteredFeatures, ModelInput
from poa_hf.evaluation.tasks import LabelledFeatures, TaskOptions, alterations_of, check_tasks, run_task

PLAIN = dict(
    seed=3, k=(5, 2), temperature=0.5, occlusion_ratios=(0.25, 0.5), occlusion_grid=4, shuffle_grids=(2, 4),
    corruption_strengths=(1, 5), linear_augmentation=2, linear_steps=7, label_shares=(0.5,), label_draws=2,
    retrieval_k=(1, 3), kmeans_restarts=2, num_classes=3, ignore_index=(9,), depth_scale=4.0, max_depth=8.0,
    correspondence_pixels=(4.0, 8.0), dense_image_size=32,
)  # fmt: skip
OTHERS = dict(protocol="dinov2", corruptions=["gaussian_noise"])


def of_numpy(value):
    if isinstance(value, tuple):
        return tuple(map(of_numpy, value))
    return np.float32(value) if isinstance(value, float) else np.int64(value)


def types_in(value) -> set[type]:
    return set().union(*map(types_in, value)) if isinstance(value, list | tuple) else {type(value)}


OPTIONS = TaskOptions(**{name: of_numpy(value) for name, value in PLAIN.items()}, **OTHERS)


def test_every_number_becomes_one_of_python():
    assert {field.name for field in dataclasses.fields(TaskOptions)} == PLAIN.keys() | OTHERS.keys()
    check_tasks(["knn"], OPTIONS, 60)
    for name, value in PLAIN.items():
        assert getattr(OPTIONS, name) == value and types_in(getattr(OPTIONS, name)) <= {int, float}, name
    assert OPTIONS == TaskOptions(**PLAIN, **OTHERS)


@pytest.mark.parametrize("task", ["knn", "lowshot", "clustering", "retrieval", "occlusion", "shuffle", "corruptions"])
def test_what_scores_say_can_be_written(task):
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(90, 8, generator=generator), torch.arange(90) % 3
    everything = torch.ones(30, dtype=torch.bool)
    altered = {
        alteration: AlteredFeatures(features[60:], everything)
        for alteration in alterations_of([task], OPTIONS, ModelInput(32, 32))
    }
    train, test = LabelledFeatures(features[:60], labels[:60]), LabelledFeatures(features[60:], labels[60:], altered)
    scores = run_task(task, train, test, 3, OPTIONS, torch.device("cpu"))
    plain = run_task(task, train, test, 3, TaskOptions(**PLAIN, **OTHERS), torch.device("cpu"))
    said = [json.dumps([score.value, score.settings, score.details]) for score in scores]
    assert said == [json.dumps([score.value, score.settings, score.details]) for score in plain]
