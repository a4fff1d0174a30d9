"""Features that are not finite are refused by one sentence, wherever they are given."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from poa_hf.evaluation.tasks.kmeans import kmeans
from poa_hf.evaluation.tasks.knn import knn_predictions
from poa_hf.evaluation.tasks.lowshot import fit_logistic_regression, low_shot_accuracies
from poa_hf.evaluation.tasks.probe import fit_linear_probe
from poa_hf.evaluation.tasks.retrieval import retrieval_scores
from poa_hf.figures.patches import patch_pca

LABELS = torch.arange(12) % 3
SOUND = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
USES: dict[str, Callable[[Tensor], object]] = {
    "k-NN, queries": lambda features: knn_predictions(SOUND, LABELS, features, [1]),
    "k-NN, memory": lambda features: knn_predictions(features, LABELS, SOUND, [1]),
    "retrieval, queries": lambda features: retrieval_scores(features, LABELS, SOUND, LABELS),
    "retrieval, memory": lambda features: retrieval_scores(SOUND, LABELS, features, LABELS),
    "retrieval, one split": lambda features: retrieval_scores(features, LABELS),
    "k-means": lambda features: kmeans(features, 3),
    "probe": lambda features: fit_linear_probe(features, LABELS, min_steps=1),
    "logistic regression": lambda features: fit_logistic_regression(features, LABELS),
    "low-shot, train": lambda features: low_shot_accuracies(features, LABELS, SOUND, LABELS, 0.5),
    "low-shot, test": lambda features: low_shot_accuracies(SOUND, LABELS, features, LABELS, 0.5),
    "patches": lambda features: patch_pca(features.view(1, 3, 4, 4)),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_value_is_enough(use, value):
    USES[use](SOUND)
    broken = SOUND.clone()
    broken[7, 2] = value
    with pytest.raises(ValueError, match="^Some features are not finite: the model's weights, or its input, are broke"):
        USES[use](broken)
