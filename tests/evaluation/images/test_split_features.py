import copy
from dataclasses import dataclass

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from poa_hf import PoaForPreTraining
from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.alterations.alteration import ImageAlteration, PixelAlteration, random_of
from poa_hf.evaluation.features import class_features
from poa_hf.evaluation.images.split_features import image_features
from poa_hf.evaluation.labelled import LabelledImages
from poa_hf.evaluation.processes import Processes
from poa_hf.evaluation.subject import Subject

from ...conftest import golden_config
from ..image_folders import parquet_folder, table

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


@dataclass(frozen=True)
class Inverted(ImageAlteration):
    """Inverts the images of all classes but one, which it leaves out."""

    without: int

    def alter(self, image, row, image_hash):
        return None if row.label == self.without else ImageOps.invert(image)


@dataclass(frozen=True)
class Noise(ImageAlteration):
    seed: int = 0

    def alter(self, image, row, image_hash):
        noise = random_of(image_hash, self.seed, "noise").integers(0, 256, (image.height, image.width, 3))
        return Image.fromarray(noise.astype(np.uint8))


@dataclass(frozen=True)
class Mirrored(PixelAlteration):
    def alter(self, batch):
        return batch.pixel_values.flip(3)


ALTERATIONS = [Inverted(2), Mirrored(), Noise()]


def test_altered_images_have_the_features_of_a_dataset_that_is_altered_so(subject):
    dataset = table(30, broken=(4, 17))
    found = features_of(subject, LabelledImages(dataset), batch_size=8, alterations=ALTERATIONS)
    plain = features_of(subject, LabelledImages(dataset), batch_size=8)
    assert found.labels == plain.labels and plain.altered == {}
    decodable = table(30).select([i for i in range(30) if i not in (4, 17)])
    images = [row["image"] for row in decodable]
    inverted = [image if label == 2 else ImageOps.invert(image)
                for image, label in zip(images, found.labels, strict=True)]  # fmt: skip
    prepared_inverted = PROCESSOR(inverted, return_tensors="pt").pixel_values
    for size, features in found.features.items():
        assert torch.equal(features, plain.features[size])
        altered = found.altered[size]
        assert list(altered) == ALTERATIONS
        model = subject.model.extract(size)
        pixels = PROCESSOR(images, return_tensors="pt").pixel_values
        for alteration, expected in ((Inverted(2), prepared_inverted), (Mirrored(), pixels.flip(3))):
            torch.testing.assert_close(altered[alteration].features, class_features(model, [expected]))
        assert altered[Inverted(2)].kept.tolist() == [label != 2 for label in found.labels]
        assert altered[Mirrored()].kept.all() and altered[Noise()].kept.all()
        assert not torch.allclose(altered[Noise()].features, features)


@pytest.mark.parametrize("streaming", [True, False])
def test_altered_images_depend_on_nothing_but_image_and_seed(subject, tmp_path, streaming):
    folder = parquet_folder(tmp_path / "images", table(30, broken=(3,)))
    whole = features_of(subject, LabelledImages(table(30)), alterations=[Noise(), Noise(1)])
    dataset = datasets.load_dataset(str(folder), split="train", streaming=streaming)
    kept = [i for i in range(30) if i != 3]
    for batch_size, workers in ((4, 2), (7, 0)):
        found = features_of(subject, LabelledImages(dataset), batch_size=batch_size, num_workers=workers,
                            alterations=[Noise(), Noise(1)])  # fmt: skip
        for seed in (0, 1):
            expected = whole.altered["32x3"][Noise(seed)].features[kept]
            torch.testing.assert_close(found.altered["32x3"][Noise(seed)].features, expected)
    assert not torch.allclose(whole.altered["32x3"][Noise()].features, whole.altered["32x3"][Noise(1)].features)


@dataclass(frozen=True)
class Unaltered(PixelAlteration):
    needs_saliency: bool = False

    def alter(self, batch):
        if self.needs_saliency:
            return batch.pixel_values * batch.saliency
        raise ValueError("Images of 32 x 32 pixels are too small.")


def test_what_cannot_be_altered_is_one_sentence(subject):
    images = LabelledImages(table(3))
    with pytest.raises(ValueError, match="^Images of 32 x 32 pixels are too small.$"):
        features_of(subject, images, alterations=[Unaltered()])
    with pytest.raises(ValueError, match="^The model does not tell which patches"):
        features_of(subject, images, alterations=[Unaltered(needs_saliency=True)])
