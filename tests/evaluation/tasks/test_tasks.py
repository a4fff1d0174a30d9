import pytest
import torch

from poa_hf.cli.main import main
from poa_hf.evaluation.alterations.alteration import AlteredFeatures, ModelInput
from poa_hf.evaluation.tasks import (
    IMAGE_TASKS,
    TASKS,
    LabelledFeatures,
    TaskOptions,
    alterations_of,
    check_tasks,
    need_train,
    remarks,
    run_task,
)


@pytest.fixture(scope="module")
def splits() -> tuple[LabelledFeatures, LabelledFeatures]:
    """Three classes that are easily told apart: 60 train and 30 test images, which alterations hardly change."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    features = 4 * torch.randn(3, 8, generator=generator)[labels] + torch.randn(90, 8, generator=generator)
    everything = torch.ones(30, dtype=torch.bool)
    altered = {
        alteration: AlteredFeatures(features[60:] + torch.randn(30, 8, generator=generator) / 4, everything)
        for alteration in alterations_of(TASKS, TaskOptions(), ModelInput(32, 32))
    }
    return LabelledFeatures(features[:60], labels[:60]), LabelledFeatures(features[60:], labels[60:], altered)


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_every_task_gives_scores_that_depend_on_their_settings(splits, task):
    scores = run_task(task, *splits, 3, TaskOptions(k=(5, 10)), torch.device("cpu"))
    values = [score.value for score in scores if score.metric != "background_gap"]  # a difference of accuracies
    assert values and all(0.8 < value <= 1 for value in values)
    assert len({(score.metric, str(score.settings)) for score in scores}) == len(scores)


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_every_score_says_what_each_test_image_contributes(splits, task):
    scores = run_task(task, *splits, 3, TaskOptions(k=(5, 10)), torch.device("cpu"))
    for score in scores:
        assert score.outcomes is not None or score.metric in ("clustering_nmi", "clustering_ari")
        if score.outcomes is not None:
            assert len(score.outcomes) == 30
            assert score.outcomes.nanmean().item() == pytest.approx(score.value, abs=1e-12)


def test_tasks_without_a_train_split(splits):
    alone = [task for task in TASKS if not need_train([task])]
    assert alone == ["clustering", "correspondence"] and need_train(TASKS)
    with_train, without = (run_task("clustering", train, splits[1], 3, TaskOptions(), torch.device("cpu"))
                           for train in (splits[0], None))  # fmt: skip
    assert with_train == without
    with pytest.raises(ValueError, match="The task linear needs the features of a train split"):
        run_task("linear", None, splits[1], 3, TaskOptions(), torch.device("cpu"))


def test_options_are_checked_for_all_tasks_and_their_fit_for_the_chosen_ones():
    with pytest.raises(ValueError, match="k is .0."):
        check_tasks(["linear"], TaskOptions(k=(0,)), None)
    check_tasks(["linear"], TaskOptions(k=(99,)), 60)
    with pytest.raises(ValueError, match="k = 99 neighbours cannot be found among 60 train images"):
        check_tasks(["linear", "knn"], TaskOptions(k=(99,)), 60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(({"seed": seed}, "seed is ") for seed in (-1, 2**70, 0.5)),
        *(({"k": k}, "k is ") for k in ((), (0,), (1.5,), 5)),
        *(({"temperature": value}, "temperature is ") for value in (0, float("nan"), -1.0)),
        *(({"label_shares": shares}, "label_shares is ") for shares in ((), (0,), (0.1, 2), (float("nan"),), 0.1)),
        *(({name: 0}, f"{name} is 0") for name in ("label_draws", "kmeans_restarts", "dense_image_size")),
        *(({"retrieval_k": k}, "retrieval_k is ") for k in ((0,), (1, 2.5), 10)),
        *(({"occlusion_ratios": ratios}, "occlusion_ratios is ") for ratios in ((), (1,), 0.5)),
        *(({"correspondence_pixels": pixels}, "correspondence_pixels is ") for pixels in ((), (-1,), 8)),
        *(({name: float("inf")}, f"{name} is inf") for name in ("depth_scale", "max_depth")),
        ({"num_classes": 2.5}, "num_classes is 2.5"),
    ],
)
def test_options_out_of_range_are_refused_before_any_work(options, message):
    with pytest.raises(ValueError, match=f"^{message}.*: give .*") as error:
        check_tasks(["clustering"], TaskOptions(**options), None)
    assert str(error.value).endswith(".") and str(error.value).count(". ") == 0


def test_what_is_named_twice_is_measured_once(splits):
    twice = TaskOptions(k=(5, 5), retrieval_k=(3, 1, 3), label_shares=(0.2, 0.1, 0.2))
    once = TaskOptions(k=(5,), retrieval_k=(3, 1), label_shares=(0.2, 0.1))
    for task in ("knn", "retrieval", "lowshot"):
        found, wanted = (run_task(task, *splits, 3, options, torch.device("cpu")) for options in (twice, once))
        assert found == wanted


def test_what_is_left_out_is_remarked_on():
    assert remarks(TASKS, TaskOptions(), 60) == ["k-NN with k = 100, 200 is left out: there are 60 train images."]
    assert remarks(["linear"], TaskOptions(), 60) == remarks(TASKS, TaskOptions(k=(5,)), 60) == []


def test_the_help_of_the_command_names_every_task(capsys):
    assert main(["evaluate", "--help"]) == 0
    assert f"some of {', '.join(TASKS)} (" in " ".join(capsys.readouterr().out.split())
