import re

import pytest

from poa_hf.publishing.card.results import eval_results, results_text
from poa_hf.runs.comparison import compare, one_per_measure

from .helpers import SIZE, facts_of, record, tables, written


@pytest.mark.parametrize(
    ("value", "stored", "shown"),
    [(1e-7, 0.0, "0.0 %"), (0.1 + 0.2, 0.3, "30.0 %"), (1, 1.0, "100.0 %"), (0.81600000858, 0.816, "81.6 %")],
)
def test_numbers_are_short(tmp_path, value, stored, shown):
    card = written(tmp_path, facts_of(record(value=value)))
    assert card.data.eval_results[0].metric_value == stored and isinstance(
        card.data.eval_results[0].metric_value, float
    )
    assert tables(card)[1][1] == ["20-NN accuracy", shown]
    assert re.search(rf"value: {re.escape(str(stored))}\n", card.content)


def test_of_many_results_the_metadata_holds_one_k_and_the_tables_all(tmp_path):
    evaluations = [
        *(record(value=0.1 + k / 1000, settings={"k": k, "temperature": 0.07}) for k in (10, 20, 100, 200)),
        *(record(dataset="my/flowers", dataset_config="v2", settings={"k": k}) for k in (5, 10)),
        record(test_images=50, value=0.9),  # fewer images
        record(value=0.8, date="2026-11-24", settings={"k": 20, "temperature": 0.07}),  # an earlier day
        record(metric="lowshot_accuracy", settings={"label_share": 0.01, "draws": 3, "seed": 0}),
        record(metric="lowshot_accuracy", settings={"label_share": 0.1, "draws": 3, "seed": 0}),
        record(metric="clustering_nmi", train_split=None, train_images=None),
        record(metric="clustering_ari", value=-0.02, train_split=None, train_images=None),
        record(metric="retrieval_map"),
        record(metric="retrieval_precision", settings={"k": 1}),
        record("32x3", value=0.99),
    ]
    card = written(tmp_path, facts_of(*evaluations))
    found = [(r.dataset_type, r.dataset_config, r.metric_name, r.metric_value) for r in card.data.eval_results]
    assert found == [
        ("my/flowers", "v2", "10-NN accuracy", 0.5),
        ("textures", None, "20-NN accuracy", 0.12),
        ("textures", None, "accuracy with 1 % of the labels", 0.5),
        ("textures", None, "accuracy with 10 % of the labels", 0.5),
        ("textures", None, "clustering adjusted Rand index", -0.02),
        ("textures", None, "clustering NMI", 0.5),
        ("textures", None, "retrieval mAP", 0.5),
        ("textures", None, "retrieval precision at 1", 0.5),
    ]
    _, flowers, textures, _ = tables(card)
    assert [row[0] for row in flowers[1:]] == ["5-NN accuracy", "10-NN accuracy"]
    assert [row[0] for row in textures[1:5]] == [f"{k}-NN accuracy" for k in (10, 20, 100, 200)] and len(textures) == 11
    assert "textures**, 100 test images classified by 200 train images" in card.text


def test_intervals_have_a_column_where_one_is_known(tmp_path):
    known = record(value=0.523, interval=[0.4261, 0.61849])
    assert tables(written(tmp_path, facts_of(known, record(metric="linear_accuracy", value=0.7))))[1] == [
        ["measure", "value", "95 % interval"],
        ["20-NN accuracy", "52.3 %", "42.6 to 61.8 %"],
        ["linear probe accuracy", "70.0 %", ""],
    ]


def test_the_protocol_of_a_linear_probe_is_stated(tmp_path):
    settings = {"protocol": "poa", "seed": 0, "steps": 12500, "batch_size": 2048, "augmented_views": 10}
    linear = record(metric="linear_accuracy", task="linear", value=0.7, settings=settings)
    plain = record(metric="linear_accuracy", task="linear", value=0.6, settings={"seed": 0})
    card = written(tmp_path, facts_of(linear, plain))
    assert [row[0] for row in tables(card)[1][1:]] == ["linear probe accuracy (poa)", "linear probe accuracy"]
    assert (
        "(12500 steps of 2048 images, 10 augmented views of each): the best of 52 classifiers on the test" in card.text
    )


def test_results_on_folders_name_datasets_as_ids():
    names = {"my photos": "my-photos", "..hidden": "hidden", "模型": "dataset", "a--b": "a-b", "x" * 200: "x" * 96}
    for name, expected in {**names, "ILSVRC/imagenet-1k": "ILSVRC/imagenet-1k", "cifar10": "cifar10"}.items():
        assert eval_results([record(dataset=name)])[0].dataset_type == expected


def test_a_hold_out_and_its_reservations_are_in_the_words_of_the_card():
    fields = dict(test_split="train", test_images=20, train_images=80, holdout=0.2, holdout_seed=0)
    text = results_text([record(**fields)])
    assert (
        "**textures**, 20 test images classified by 80 train images; test images: 20 % of train, held out at random by "
        "class, seed 0:" in text
    )
    text = results_text([record(**fields, coinciding_images=3, pretrained_on_test=True)])
    assert " 3 of the test images are also train images, so the values are too high." in text
    assert " The model was pre-trained on the split that these test images are of, without labels." in text


def test_hold_outs_of_another_share_or_seed_are_other_test_sets():
    fields = dict(test_split="train", holdout=0.2, holdout_seed=0)
    records = [record(), *(record(**fields | more) for more in ({}, {"holdout": 0.3}, {"holdout_seed": 1}))]
    found = compare(records, [SIZE])
    assert len(found) == len(one_per_measure(found)) == len({one.key for one in records}) == 4
