import pytest

from poa_hf import PoaSwinConfig, PoaViTConfig
from poa_hf.models.configuration_poa_resnet import PoaResNetConfig
from poa_hf.report.published import PUBLISHED, published_points, published_values
from poa_hf.selection.costs import costs

from .pages import evaluation


def on(dataset, **fields):
    return evaluation("384x12", 0.7, **dict(dataset=dataset, test_images=50_000) | fields)


def test_the_papers_values_stand_beside_those_on_imagenet():
    names = ["ILSVRC/imagenet-1k", "imagenet-1k", "timm/imagenet-1k-wds", "imagenet", "ILSVRC2012", "ImageNet_1k"]
    assert all(published_values(on(name)) for name in names)
    linear = published_values(on("imagenet-1k", task="linear", metric="linear_accuracy", settings={}))
    knn = published_values(on("imagenet-1k", settings={"k": 10}))
    assert {model.name: value for model, value in knn.items()}["ViT-L/16"] == 0.823
    assert {model.name: value for model, value in linear.items()}["ResNet-50"] == 0.769
    points = published_points(on("imagenet-1k"), "parameters")
    assert list(points) == ["paper: ViT", "paper: Swin", "paper: ResNet"]
    assert all(len(models) == 3 and sorted(models) == models for models in points.values())
    assert points["paper: ViT"][0] == (21_675_264, 0.768, "ViT-S/16")
    assert published_points(on("imagenet-1k"), "latency-1") == {}


@pytest.mark.parametrize(
    "record",
    [
        *map(on, ["cifar10", "zh-plus/tiny-imagenet", "imagenet-100", "imagenet-21k", "imagenette", "imagenet-r"]),
        on("imagenet", settings={"num_classes": 100}),
        on("imagenet-1k", test_images=60_000),
        on("imagenet-1k", task="clustering", metric="clustering_nmi", settings={}),
        on("imagenet-1k", task="lowshot", metric="lowshot_accuracy", settings={"label_share": 0.01}),
    ],
)  # fmt: skip
def test_and_nowhere_else(record):
    assert published_points(record, "parameters") == {}


@pytest.mark.slow
@pytest.mark.parametrize("config", [PoaViTConfig, PoaSwinConfig, PoaResNetConfig])
def test_their_costs_are_those_of_the_named_sizes(config):
    config = config()
    counted = costs(config)
    named = {(counted[size].parameters, counted[size].flops) for size in config.space.named.values()}
    family = [model for model in PUBLISHED if model.family.lower() in config.model_type]
    assert named == {(model.parameters, model.flops) for model in family}
