import pytest
import torch
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model, SwinConfig, SwinModel

from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.alterations.alteration import ModelInput
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.labelled import LabelledImages
from poa_hf.evaluation.splits import EvaluationData
from poa_hf.evaluation.subject import Subject

from .image_folders import table

PROCESSOR = evaluation_processor(32, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture
def subject(tiny_model) -> Subject:
    return Subject("tiny", tiny_model.teacher, PROCESSOR, step=3)


@pytest.fixture(scope="module")
def data() -> EvaluationData:
    return EvaluationData(LabelledImages(table(30, seed=6), name="test"), LabelledImages(table(60)), "textures")


def test_named_sizes_are_the_default(subject):
    named = subject.model.config.space.named
    assert subject.sizes() == subject.sizes("named") == list(dict.fromkeys(map(str, named.values())))
    assert subject.sizes("small, 32x3,small") == [str(named["small"]), "32x3"]
    assert len(subject.sizes("all")) == len(subject.model.config.space)


def test_what_the_images_are_that_a_model_gets(subject):
    assert subject.input == ModelInput(32, 32, patch_size=8)
    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=56, patch_size=[14, 14])
    wide = BitImageProcessorPil(do_resize=True, size={"height": 56, "width": 84}, do_center_crop=False)
    assert Subject("wide", Dinov2Model(config), wide).input == ModelInput(56, 84, patch_size=14)
    swin = SwinModel(SwinConfig(image_size=32, embed_dim=8, depths=[1], num_heads=[1], window_size=4))
    assert Subject("swin", swin, PROCESSOR).input == ModelInput(32, 32)


def test_models_that_give_no_features(data, tiny_model):
    head = Subject("head", torch.nn.Identity(), PROCESSOR)
    with pytest.raises(ValueError, match="head gives no features of images"):
        evaluate_sizes(head, data)
