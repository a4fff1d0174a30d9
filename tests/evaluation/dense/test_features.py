import pytest
import torch

from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.data.coinciding import ImageId
from poa_hf.evaluation.dense.features import patch_features_of
from poa_hf.evaluation.dense.images import DenseImages
from poa_hf.evaluation.dense.maps import input_size
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.opened import opened
from poa_hf.evaluation.splits import EvaluationData
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import TaskOptions
from poa_hf.evaluation.tasks.dense_task import Example
from poa_hf.figures.patches import patch_features

from ...figures.models import elastic
from ...test_contract import PUBLISHED
from .pictures import rows


@pytest.mark.parametrize("family", PUBLISHED)
def test_features_are_those_of_the_model_whatever_the_shapes_in_a_batch(family):
    model = elastic(family)
    size = str(model.config.space.smallest)
    with opened(model, size) as run:
        stride = run.stride
    side = 2 * max(stride, model.config.image_size)
    shapes = [input_size(width, height, side, stride) for width, height in ((40, 30), (30, 40), (40, 30))]
    examples = [Example(str(n), ImageId(b"", ""), torch.randn(3, *shape)) for n, shape in enumerate(shapes)]
    examples[1].views["view"] = torch.randn(3, *shapes[0])
    subject = Subject("model", model, evaluation_processor(side))
    found = list(patch_features_of(subject, size, examples, torch.device("cpu"), False, batch_size=2))
    for example, views in zip(examples, found, strict=True):
        for name, pixel_values in {"": example.pixel_values, **example.views}.items():
            wanted = patch_features(model, pixel_values[None], size)[0]
            assert wanted.shape[:2] == (pixel_values.shape[1] // stride, pixel_values.shape[2] // stride)
            torch.testing.assert_close(views[name], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", PUBLISHED)
def test_every_family_is_measured(family):
    model = elastic(family)
    subject = Subject("model", model, evaluation_processor(2 * model.config.image_size))
    data = EvaluationData(DenseImages(rows(3, seed=1), name="test"), name="pictures")
    options = TaskOptions(correspondence_pixels=(16,))
    space = model.config.space
    records = evaluate_sizes(subject, data, [space.smallest, space.full], ["correspondence"], options)
    assert [record.size for record in records] == [str(space.smallest), str(space.full)]
    assert all(0 <= record.value <= record.details["best_possible"] for record in records)


def test_features_that_are_not_finite():
    model = elastic("vit")
    with torch.no_grad():
        model.layernorm.weight.fill_(torch.inf)
    subject = Subject("model", model, evaluation_processor(32))
    data = EvaluationData(DenseImages(rows(2), name="test"))
    with pytest.raises(ValueError, match=r"Some features of \w+ are not finite"):
        evaluate_sizes(subject, data, [model.config.space.full], ["correspondence"])
