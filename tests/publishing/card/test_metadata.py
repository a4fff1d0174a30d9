import pytest
import yaml

from poa_hf.publishing.card.metadata import card_problems


def with_data(**fields) -> str:
    return f"---\n{yaml.safe_dump({'license': 'mit', **fields})}---\n# Text\n"


RESULT = {
    "task": {"type": "image-classification"},
    "dataset": {"type": "cifar10", "name": "CIFAR-10"},
    "metrics": [{"type": "accuracy", "value": 0.5}],
}


def test_what_the_hub_takes_passes():
    assert card_problems(with_data()) == []
    index = [{"name": "x", "results": [RESULT]}]
    full = dict(
        tags=["a"], language=["en", "code"], datasets="imagenet-1k", base_model=["a/b", "gpt2"],
        pipeline_tag="robotics",
        base_model_relation="merge", library_name="timm", metrics=["wer"], co2_eq_emissions={"emissions": 3},
    )  # fmt: skip
    assert card_problems(with_data(**full, **{"model-index": index})) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("# Text\n", "does not begin with metadata"),
        ("---\na: [\n---\n", "not valid YAML"),
        ("---\n- a\n---\n", "not a mapping"),
        (with_data(license="Apache-2.0"), "did you mean apache-2.0"),
        (with_data(license="other"), "license_name"),
        (with_data(pipeline_tag="image-features"), "not a task"),
        (with_data(tags=[1.0]), '"tags" 1.0'),
        (with_data(language="English"), "two or three letters"),
        (with_data(base_model="/runs/mine"), "id of a model"),
        (with_data(base_model="me/a b"), "id of a model"),
        (with_data(base_model="a/b/c"), "id of a model"),
        (with_data(base_model_relation="extracted"), "base_model_relation"),
        (with_data(datasets=["my photos"]), "id of a dataset"),
        (with_data(library_name=3), "library_name"),
        (with_data(co2_eq_emissions={"source": "x"}), "emissions"),
        (with_data(**{"model-index": {"name": "x"}}), "must be a list"),
        (with_data(**{"model-index": [{"results": [RESULT]}]}), "name"),
        (with_data(**{"model-index": [{"name": "x", "results": []}]}), "results"),
        *(
            (with_data(**{"model-index": [{"name": "x", "results": [RESULT | changed]}]}), problem)
            for changed, problem in [
                ({"task": {"type": "knn"}}, "task.type"),
                ({"dataset": {"type": "my photos", "name": "x"}}, "dataset.type"),
                ({"dataset": {"type": "x"}}, "dataset.name"),
                ({"dataset": {"type": "x", "name": "x", "config": 3}}, "a string as config"),
                ({"metrics": []}, "metrics"),
                ({"metrics": [{"value": 1}]}, "metrics[0].type"),
                ({"metrics": [{"type": "x", "value": float("nan")}]}, "metrics[0].value"),
                ({"metrics": [{"type": "x"}]}, "metrics[0].value"),
            ]
        ),
    ],
)
def test_what_the_hub_refuses_is_found(content, problem):
    (found,) = card_problems(content)
    assert problem in found
