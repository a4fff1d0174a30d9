import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from transformers import Dinov2Config, Dinov2Model

from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.dense.images import DenseImages
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.splits import EvaluationData
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import TaskOptions
from poa_hf.evaluation.tasks import depth as module
from poa_hf.evaluation.tasks.depth import DEPTH, DepthOptions, depths_of, scale_invariant_loss
from poa_hf.runs.metrics import METRICS

from ..dense.pictures import rows


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(module, "STEPS", 150)


@pytest.fixture(scope="module")
def stock() -> Subject:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 4}
    return Subject("stock", Dinov2Model(Dinov2Config(**shape)), evaluation_processor(32))


def data_of(train: list[dict], test: list[dict]) -> EvaluationData:
    return EvaluationData(DenseImages(test, ["depth"], name="test"), DenseImages(train, ["depth"]), "pictures")


def test_distances_of_plain_colours_are_learned(stock):
    rmse, delta = evaluate_sizes(stock, data_of(rows(12), rows(6, seed=1)), tasks=["depth"])
    assert (rmse.metric, delta.metric) == ("depth_rmse", "depth_delta1")
    truth = np.concatenate([row["depth"][row["depth"] > 0] for row in rows(6, seed=1)])
    assert rmse.value < 0.8 * truth.std() and delta.value > 0.7, (rmse, delta)
    assert rmse.interval[0] < rmse.value < rmse.interval[1]
    assert not METRICS["depth_rmse"].higher_is_better and METRICS["depth_rmse"].shown(1.234) == "1.23"


def test_a_scale_changes_the_unit_only(stock):
    millimetres = [[row | {"depth": (1000 * row["depth"]).astype(np.uint16)} for row in part]
                   for part in (rows(6), rows(3, seed=1))]  # fmt: skip
    in_metres = evaluate_sizes(stock, data_of(rows(6), rows(3, seed=1)), tasks=["depth"])
    scaled = evaluate_sizes(stock, data_of(*millimetres), tasks=["depth"], options=TaskOptions(depth_scale=1000))
    for one, other in zip(in_metres, scaled, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-3)


def test_numbers_of_an_image_against_a_loop_over_pixels():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 4, 6, generator=generator)
    fitted = {"weight": torch.randn(6, 256, generator=generator), "bias": torch.randn(256, generator=generator)}
    fitted["bins"] = torch.linspace(0.001, 10, 256)
    depths = torch.rand(9, 16, generator=generator) * 12
    depths[0, :5] = torch.nan

    class Image:
        values = {"depth": depths.numpy()}

    found = DEPTH.measure(fitted, features, None, Image, DepthOptions(max_depth=10.0)).tolist()
    logits = interpolate(
        (features @ fitted["weight"] + fitted["bias"]).permute(2, 0, 1)[None], (9, 16), mode="bilinear"
    )
    squares, close, count = 0.0, 0, 0
    for y in range(9):
        for x in range(16):
            right = float(depths[y, x])
            if not right <= 10:
                continue
            weights = np.maximum(logits[0, :, y, x].numpy().astype(float), 0) + 0.1
            predicted = (weights / weights.sum()) @ fitted["bins"].numpy()
            squares, count = squares + (predicted - right) ** 2, count + 1
            close += max(predicted / right, right / predicted) < 1.25
    assert found == pytest.approx([(squares / count) ** 0.5, close / count], rel=1e-5)


def test_the_loss_ignores_most_of_a_common_factor():
    depths = torch.rand(100, generator=torch.Generator().manual_seed(0)) * 5 + 1
    assert scale_invariant_loss(depths, depths) < 1e-5
    assert scale_invariant_loss(2 * depths, depths).item() == pytest.approx(0.15**0.5 * np.log(2), rel=1e-4)
    assert depths_of(torch.full((4, 256), -1.0), torch.linspace(0, 2, 256)).tolist() == pytest.approx([1.0] * 4)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda row: row | {"depth": np.zeros((32, 48))}, {}, "No pixel of the train split's depth maps has a dist"),
        (lambda row: row, {"max_depth": 0.5}, "a distance above 0 up to 0.5"),
        (lambda row: row | {"depth": np.ones((16, 24))}, {}, "Row 0 of the train split has .* 48 x 32 .* a depth of"),
        (lambda row: row, {"depth_scale": 0.0}, "depth_scale is 0"),
    ],
)  # fmt: skip
def test_depth_maps_that_cannot_be_used(stock, change, options, message):
    data = data_of([change(row) for row in rows(3)], rows(2, seed=1))
    with pytest.raises(ValueError, match=message):
        evaluate_sizes(stock, data, tasks=["depth"], options=TaskOptions(**options))
