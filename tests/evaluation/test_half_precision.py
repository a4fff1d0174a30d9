"""Models whose parameters are in half precision, most of which do not convert images by themselves."""

import copy

import pytest
import torch
from transformers import ResNetConfig, ResNetModel, SwinConfig, SwinModel, ViTConfig, ViTModel

from poa_hf import PoaResNetConfig, PoaResNetModel, PoaSwinConfig, PoaSwinModel
from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.images.split_features import image_features
from poa_hf.evaluation.labelled import LabelledImages
from poa_hf.evaluation.processes import Processes
from poa_hf.evaluation.splits import EvaluationData
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import TaskOptions

from ..conftest import slow_but
from .image_folders import table

VIT = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8)
SWIN = dict(image_size=32, patch_size=2, embed_dim=16, depths=[1, 1, 2], num_heads=[2, 4, 8], window_size=4)
RESNET = dict(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 2], layer_type="basic")
MODELS = {
    "vit": lambda: ViTModel(ViTConfig(**VIT)),
    "swin": lambda: SwinModel(SwinConfig(**SWIN)),
    "resnet": lambda: ResNetModel(ResNetConfig(**RESNET)),
    "poa_swin": lambda: PoaSwinModel(PoaSwinConfig(**SWIN, min_embed_dim=8, min_depths=[1, 1, 1])),
    "poa_resnet": lambda: PoaResNetModel(
        PoaResNetConfig(
            embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[1, 2, 3, 1], base_width=16, num_groups=4,
            min_base_width=8, min_depths=[1, 1, 1, 1], image_size=32,
        )
    ),
}  # fmt: skip
OPTIONS = TaskOptions(k=(5,), occlusion_ratios=(0.5,), protocol="dinov2", linear_steps=20, linear_augmentation=0)


@pytest.fixture(scope="module")
def data() -> EvaluationData:
    return EvaluationData(LabelledImages(table(20, seed=6), name="test"), LabelledImages(table(40)), "textures")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", slow_but(MODELS, "swin", "resnet", "poa_swin"))
def test_half_precision_gives_nearly_the_same(data, kind, dtype):
    torch.manual_seed(0)
    full = MODELS[kind]().eval()
    half = copy.deepcopy(full).to(dtype)
    found, records = {}, {}
    for model in (full, half):
        subject = Subject(kind, model, evaluation_processor(32))
        sizes = subject.sizes()
        models, owners = subject.callables(sizes), dict.fromkeys(sizes, 0)
        found[model] = image_features(models, data.test, subject.processor, owners, Processes()).features
        records[model] = evaluate_sizes(subject, data, tasks=["knn", "linear", "occlusion"], options=OPTIONS)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    for size, wanted in found[full].items():
        assert found[half][size].dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(found[half][size], wanted).min() > 0.99
    for wanted, record in zip(records[full], records[half], strict=True):
        assert (record.size, record.metric, record.settings) == (wanted.size, wanted.metric, wanted.settings)
        assert abs(record.value - wanted.value) < 0.25  # 5 of 20 images, with weights drawn at random
