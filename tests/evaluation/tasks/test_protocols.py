import pytest
import torch
from torch import nn

from poa_hf.data.processor import evaluation_processor
from poa_hf.evaluation.evaluator import evaluate_sizes
from poa_hf.evaluation.images.layer_features import LayerFeatures
from poa_hf.evaluation.splits import open_splits
from poa_hf.evaluation.subject import Subject
from poa_hf.evaluation.tasks import TaskOptions, check_tasks
from poa_hf.evaluation.tasks.probe import fit_linear_probe
from poa_hf.evaluation.tasks.protocols import INPUTS, _endless_batches, fit_protocol
from poa_hf.models.modeling_poa_vit import PoaViTModel
from poa_hf.runs.metrics import column_title, metric_name

from ...conftest import tiny_config

RATES = (0.01, 0.5)


def features(count: int, seed: int) -> tuple[LayerFeatures, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    columns = torch.randn(count, 36, generator=generator) + torch.eye(3, 36)[labels]
    return LayerFeatures(columns, (6,) * 6), labels


def test_classifiers_are_those_of_the_authors_loop():
    """The loop of `dinov2/eval/linear.py`, with one `nn.Linear` and one group of parameters for each classifier."""
    (first, labels), (second, _) = features(20, 0), features(20, 1)
    views, batch_size, steps = [first, second], 48, 12
    start = fit_protocol(views, labels, 3, batch_size, 0, RATES)
    found = fit_protocol(views, labels, 3, batch_size, steps, RATES)
    classifiers, groups = [], []
    for weight in start.weights:
        for place, rate in enumerate(RATES):
            linear = nn.Linear(len(weight) - 1, 3)
            linear.weight.data, linear.bias.data = weight[:-1, place].T.clone(), weight[-1, place].clone()
            classifiers.append(linear)
            groups.append({"params": linear.parameters(), "lr": rate * batch_size / 256})
    assert all((weight[-1] == 0).all() for weight in start.weights)
    drawn = torch.cat([weight[:-1].flatten() for weight in start.weights])
    assert drawn.std().item() == pytest.approx(0.01, rel=0.15)
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0)
    batches = _endless_batches(20, batch_size, 0)
    for _ in range(steps):
        parts = next(batches)
        targets = torch.cat([labels[index] for _, index in parts])
        loss = torch.tensor(0.0)
        for number, linear in enumerate(classifiers):
            layers, patches = INPUTS[number // len(RATES)]
            tokens = [torch.cat([views[epoch % 2].columns[index] for epoch, index in parts])[:, 6:]]
            tokens = list(tokens[0].split(6, dim=1))
            chosen = tokens[:4][-layers:] + ([tokens[4]] if patches else [])
            loss = loss + nn.functional.cross_entropy(linear(torch.cat(chosen, dim=1)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    for number, linear in enumerate(classifiers):
        weight = found.weights[number // len(RATES)][:, number % len(RATES)]
        torch.testing.assert_close(weight[:-1].T, linear.weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(weight[-1], linear.bias, rtol=1e-4, atol=1e-6)
    test, _ = features(10, 2)
    layers = test.columns[:, 6:].split(6, dim=1)
    for predicted, (count, patches), place in zip(found.predictions(test, 4), INPUTS, range(4), strict=True):
        inputs = torch.cat([*layers[:4][-count:], *([layers[4]] if patches else [])], dim=1)
        expected = [classifiers[2 * place + rate](inputs).argmax(dim=1) for rate in range(2)]
        assert torch.equal(predicted, torch.stack(expected, dim=1))


def test_batches_hold_every_image_once_an_epoch_whatever_their_size():
    for batch_size in (3, 7, 25):
        batches = _endless_batches(7, batch_size, 0)
        seen: dict[int, list[int]] = {}
        for _ in range(30):
            parts = next(batches)
            assert sum(len(index) for _, index in parts) == batch_size
            for epoch, index in parts:
                seen.setdefault(epoch, []).extend(index.tolist())
        assert all(sorted(seen[epoch]) == list(range(7)) for epoch in range(max(seen)))
        assert seen[0] != seen[1]


def test_a_classifier_that_diverges_is_never_right():
    first, labels = features(20, 0)
    trained = fit_protocol([first], labels, 3, 20, 100, (0.1, float("inf")))
    predictions = trained.predictions(first)[0]
    assert (predictions[:, 1] == -1).all() and (predictions[:, 0] == labels).double().mean() > 0.4


@pytest.fixture(scope="module")
def subject() -> Subject:
    torch.manual_seed(0)
    return Subject("run", PoaViTModel(tiny_config().backbone_config).eval(), evaluation_processor(32))


@pytest.fixture(scope="module")
def data():
    return open_splits("textures", max_train_images=60, max_test_images=30)


def values(records) -> dict:
    return {(record.size, column_title(record)): record.value for record in records}


@pytest.mark.parametrize(("name", "batch_size"), [("poa", 2048), ("dinov2", 1024)])
def test_protocols_say_what_they_are(subject, data, caplog, name, batch_size):
    options = TaskOptions(protocol=name, linear_steps=2, linear_augmentation=2)
    with caplog.at_level("INFO"):
        [linear] = evaluate_sizes(subject, data, ["16x1"], ["linear"], options)
    assert "learns from 2 augmented views of each train image" in caplog.text
    assert linear.settings == {
        "protocol": name, "seed": 0, "steps": 2, "batch_size": batch_size, "augmented_views": 2, "chosen_on": "test",
    }  # fmt: skip
    assert column_title(linear) == f"linear ({name})" and metric_name(linear) == f"linear probe accuracy ({name})"
    assert linear.details["layers"] in (1, 4) and linear.interval is not None


def test_a_protocol_depends_on_neither_batches_nor_passes_and_leaves_other_numbers_alone(subject, data):
    sizes, tasks = ["16x1", "32x3"], ["knn", "linear"]
    options = TaskOptions(k=(5,), protocol="poa", linear_steps=2, linear_augmentation=1)
    records = evaluate_sizes(subject, data, sizes, tasks, options, batch_size=16, quiet=True)
    small = evaluate_sizes(subject, data, sizes, tasks, options, batch_size=7, quiet=True, feature_memory_gb=1e-6)
    assert values(records) == values(small)
    plain = evaluate_sizes(subject, data, sizes, ["knn"], TaskOptions(k=(5,)), quiet=True)
    assert values(plain).items() < values(records).items()


def test_a_probe_learns_from_views_if_asked(subject, data):
    options = TaskOptions(linear_augmentation=3)
    [record] = evaluate_sizes(subject, data, ["16x1"], ["linear"], options, quiet=True)
    assert record.settings == {"seed": 0, "augmented_views": 3} and column_title(record) == "linear (3 views)"
    [plain] = evaluate_sizes(subject, data, ["16x1"], ["linear"], quiet=True)
    assert plain.settings == {"seed": 0} and column_title(plain) == "linear"


def test_views_take_the_place_of_the_images_in_turn():
    train, labels = features(60, 0)
    usual = dict(min_steps=40, epochs=1, learning_rates=(0.1,))
    clean = fit_linear_probe(train.columns, labels, **usual)
    same = fit_linear_probe(train.columns, labels, **usual, views=[train.columns, train.columns])
    assert torch.equal(clean.classifier.weight, same.classifier.weight)
    other = fit_linear_probe(train.columns, labels, **usual, views=[train.columns, train.columns + 1])
    assert not torch.equal(clean.classifier.weight, other.classifier.weight)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "dino"}, "'dino' is not a protocol: choose from poa, dinov2."),
        ({"linear_augmentation": -1}, "linear_augmentation"),
        ({"linear_steps": 0, "protocol": "poa"}, "linear_steps"),
        ({"linear_steps": 10}, "linear_steps belongs to a protocol"),
    ],
)
def test_options_that_are_not_valid_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        check_tasks(["linear"], TaskOptions(**options), None)
