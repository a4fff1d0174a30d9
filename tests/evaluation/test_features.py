import copy

import datasets
import pytest
import torch
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

from poa_hf import PoaForPreTraining
from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.features import class_features, image_features
from poa_hf.evaluation.labelled import LabelledImages
from poa_hf.evaluation.processes import Processes
from poa_hf.evaluation.subject import Subject

from ..conftest import golden_config
from .images import parquet_folder, table


def dinov2() -> Dinov2Model:
    torch.manual_seed(0)
    return Dinov2Model(
        Dinov2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, drop_path_rate=0.5
        )
    )


def test_features_are_the_normalised_class_token_in_evaluation_mode():
    model = dinov2().train()
    model.layernorm.eval()  # a frozen part
    images = torch.randn(5, 3, 32, 32)
    features = class_features(model, (batch for batch in images.split(2)))
    assert model.training and model.encoder.training and not model.layernorm.training
    assert features.shape == (5, 32) and features.dtype == torch.float32
    with torch.no_grad():
        expected = model.eval()(pixel_values=images).last_hidden_state[:, 0]
    torch.testing.assert_close(features, expected)
    (features @ torch.ones(32, requires_grad=True)).sum().backward()  # no inference tensor: a probe can train on it
    assert class_features(model.bfloat16(), [images]).dtype == torch.float32


def test_features_of_other_families():
    images = [torch.randn(3, 3, 32, 32)]
    vit = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    assert class_features(ViTModel(vit, add_pooling_layer=False), images).shape == (3, 32)
    swin = SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    assert class_features(SwinModel(swin), images).shape == (3, 16)
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    assert class_features(ResNetModel(resnet), images).shape == (3, 16)


def test_models_and_batches_without_features_are_refused():
    model = Dinov2ForImageClassification(dinov2().config).train()
    with pytest.raises(ValueError, match="without a task's head"):
        class_features(model, [torch.randn(1, 3, 32, 32)])
    assert model.training
    with pytest.raises(ValueError, match="at least one batch"):
        class_features(dinov2(), [])


PROCESSOR = evaluation_processor(32, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture
def subject(tiny_model) -> Subject:
    return Subject("tiny", tiny_model.teacher, PROCESSOR, step=3)


def features_of(subject, images, sizes=("16x1", "32x3"), **options):
    owners = dict.fromkeys(sizes, 0)
    return image_features(subject.callables(sizes), images, subject.processor, owners, Processes(), **options)


def test_features_are_those_of_the_extracted_models(subject):
    dataset = table(20)
    found = features_of(subject, LabelledImages(dataset), batch_size=20)
    pixels = PROCESSOR([row["image"] for row in dataset], return_tensors="pt").pixel_values
    assert found.labels == dataset["label"] and found.skipped == 0
    for size, features in found.features.items():
        assert torch.equal(features, class_features(subject.model.extract(size), [pixels]))


def test_every_family_and_size(family):
    model = PoaForPreTraining(golden_config(family)).eval().teacher
    processor = evaluation_processor(model.config.image_size, PROCESSOR.image_mean, PROCESSOR.image_std)
    subject = Subject(family, model, processor)
    dataset = table(3)
    pixels = processor([row["image"] for row in dataset], return_tensors="pt").pixel_values
    found = features_of(subject, LabelledImages(dataset), subject.sizes("all"))
    assert len(found.features) == len(model.config.space) > 1
    for size, features in found.features.items():
        torch.testing.assert_close(features, class_features(model.extract(size), [pixels]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("streaming", [True, False])
def test_images_that_cannot_be_decoded_go_with_their_labels(subject, tmp_path, caplog, streaming):
    folder = parquet_folder(tmp_path / "images", table(30, broken=(0, 7, 29)))
    dataset = datasets.load_dataset(str(folder), split="train", streaming=streaming)
    found = features_of(subject, LabelledImages(dataset), batch_size=4)
    whole = features_of(subject, LabelledImages(table(30)), batch_size=4)
    kept = [i for i in range(30) if i not in (0, 7, 29)]
    assert found.skipped == 3 and found.labels == [whole.labels[i] for i in kept]
    torch.testing.assert_close(found.features["16x1"], whole.features["16x1"][kept])
    assert len(caplog.records) == 3 and "of the train split could not be decoded" in caplog.text


def test_workers_change_nothing(subject, tmp_path):
    folder = parquet_folder(tmp_path / "images", table(30, broken=(3,)))
    for streaming in (True, False):
        dataset = datasets.load_dataset(str(folder), split="train", streaming=streaming)
        alone, helped = (
            features_of(subject, LabelledImages(dataset), batch_size=4, num_workers=number) for number in (0, 2)
        )
        assert alone.labels == helped.labels and helped.skipped == 1
        assert all(torch.equal(alone.features[size], helped.features[size]) for size in alone.features)


def test_what_goes_wrong_in_a_worker_is_one_sentence(subject, caplog):
    late = LabelledImages(table(12, label=datasets.Value("int64"), labels=[0] * 11 + [-1]))
    for workers in (0, 1):
        with pytest.raises(ValueError, match="^Row 11 of the train split has no label"):
            features_of(subject, late, num_workers=workers)
    with pytest.raises(ValueError, match="^No image of the train split could be decoded .row 0"):
        features_of(subject, LabelledImages(table(2, broken=(0, 1))))
    broken = copy.deepcopy(subject.model)
    broken.layernorm.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="^Some features of 16x1 are not finite"):
        features_of(Subject("broken", broken, PROCESSOR), LabelledImages(table(2)))
