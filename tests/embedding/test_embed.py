"""Features of a dataset as files: the numbers, the rows, and going on after any end."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, Dinov2Config, Dinov2Model

from poa_hf import Embeddings, PoaForPreTraining, PoaViTModel, embed, extract_to, load_subject, open_dataset
from poa_hf.data.processor import evaluation_processor, usual_processor
from poa_hf.evaluation.subject import Subject

from ..conftest import golden_config, save_run, tiny_backbone
from .photos import BROKEN, COUNT, names, write_parquet, write_photos

SLOW = pytest.mark.slow
SOUND = [index for index in range(COUNT) if index != BROKEN]


def extract(run, size, folder):
    model = PoaForPreTraining.from_pretrained(run)
    model.teacher.extract(size).save_pretrained(folder)
    usual_processor(model.config.backbone_config).save_pretrained(folder)
    return folder


def by_transformers(folder, photos):
    """Features and patch tokens of the sound photographs, by the stock model in a folder."""
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    images = [Image.open(photos / names()[index]).convert("RGB") for index in SOUND]
    with torch.no_grad():
        output = model.eval()(**processor(images, return_tensors="pt"))
    return output.pooler_output.flatten(1).numpy(), output.last_hidden_state


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@SLOW
def test_the_folder_that_the_command_extracts(run, photos, tmp_path):
    model = PoaForPreTraining.from_pretrained(run)
    size = model.config.backbone_config.space.smallest
    extract_to(model, size, tmp_path / "extracted", processor=evaluation_processor(32))
    wanted, _ = by_transformers(tmp_path / "extracted", photos)
    assert np.abs(embed(run, photos, tmp_path / "out", size).features - wanted).max() < 1e-6


@pytest.mark.parametrize("size", ["small", pytest.param("24x2", marks=SLOW), None])
def test_the_numbers_are_those_of_the_extracted_model(run, photos, tmp_path, size):
    extracted = extract(run, size or "32x3", tmp_path / "extracted")
    wanted, tokens = by_transformers(extracted, photos)
    for name, model, given in (("a", run, size), ("b", extracted, None)):
        found = embed(model, photos, tmp_path / name, given, patches=True, batch_size=3)
        assert np.abs(found.features - wanted).max() < 1e-6
        patches = tokens[:, 1:].unflatten(1, (4, 4)).numpy()
        assert found.patches.shape == patches.shape and np.abs(found.patches - patches).max() < 1e-6


@SLOW
@pytest.mark.parametrize(("family", "size"), [("swin", "8x2-2-2-2"), ("resnet", "8x1-1-1-1")])
def test_families_without_class_tokens(family, size, photos, tmp_path):
    torch.manual_seed(2)
    run = save_run(PoaForPreTraining(golden_config(family)), tmp_path / family)
    extracted = extract(run, size, tmp_path / "extracted")
    wanted, hidden = by_transformers(extracted, photos)
    if hidden.ndim == 3:  # Swin's tokens, row by row
        hidden = hidden.unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    for name, model, given in (("a", run, size), ("b", extracted, None)):
        found = embed(model, photos, tmp_path / name, given, patches=True)
        assert np.abs(found.features - wanted).max() < 1e-6
        assert np.abs(found.patches - hidden.permute(0, 2, 3, 1).numpy()).max() < 1e-6


def test_rows_of_a_folder(run, photos, tmp_path, caplog):
    found = embed(run, photos, tmp_path / "out", label_column="label", rows_per_shard=3)
    assert found.ids.tolist() == SOUND and found.paths == [names()[index] for index in SOUND]
    assert found.labels == [int(index >= 6) for index in SOUND] and found.manifest.class_names == ["cat", "dog"]
    assert len(found) == COUNT - 1 and [record.rows for record in found.records] == [3, 2, 3, 2]
    assert caplog.text.count(names()[BROKEN]) == 1
    [line] = (tmp_path / "out" / "skipped_images.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == BROKEN and json.loads(line)["image"] == names()[BROKEN]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_stream_is_that_of_the_folder(run, photos, tmp_path, workers):
    tables = write_parquet(tmp_path / "tables", photos)
    of_folder = embed(run, photos, tmp_path / "a", rows_per_shard=4)
    of_stream = embed(run, tables, tmp_path / "b", rows_per_shard=4, label_column="n", num_workers=workers)
    assert np.array_equal(of_folder.features, of_stream.features)
    assert of_stream.ids.tolist() == SOUND == of_stream.labels
    assert of_stream.paths == [name.split("/")[1] for name in of_folder.paths]


@pytest.mark.parametrize(
    "kind",
    [
        *("images", "generator", "skipped and taken"),
        *(pytest.param(kind, marks=SLOW) for kind in ("tuples", "arrays", "a function of rows", "pillow in a stream")),
    ],
)
def test_any_dataset(run, photos, tmp_path, kind):
    images = [Image.open(photos / names()[index]).convert("RGB") for index in SOUND]
    rows = [{"image": image} for image in images]
    made = {
        "images": lambda: images,
        "tuples": lambda: [(image, 3) for image in images],
        "arrays": lambda: [{"image": np.asarray(image)} for image in images],
        "generator": lambda: datasets.IterableDataset.from_generator(lambda: iter(rows)),
        "skipped and taken": lambda: (
            datasets.Dataset.from_list([rows[0], *rows, rows[0]])
            .to_iterable_dataset(num_shards=4)
            .skip(1)
            .take(len(rows))
        ),
        "a function of rows": lambda: datasets.Dataset.from_list(rows).with_transform(lambda batch: batch),
        "pillow in a stream": lambda: (
            datasets.Dataset.from_dict({"n": [*range(len(images))]})
            .to_iterable_dataset()
            .map(lambda row: {"image": images[row["n"]]}, remove_columns="n")
        ),
    }
    found = embed(run, made[kind](), tmp_path / "out", rows_per_shard=4)
    wanted = embed(run, photos, tmp_path / "photos")
    assert found.ids.tolist() == [*range(len(images))]
    assert np.array_equal(found.features, wanted.features)


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        *(("parquet", "float16"), ("safetensors", "float32"), ("npy", "float16")),
        *(
            pytest.param(form, dtype, marks=SLOW)
            for form, dtype in (("parquet", "float32"), ("safetensors", "float16"), ("npy", "float32"))
        ),
    ],
)
def test_every_format_holds_the_same(run, photos, tmp_path, form, dtype):
    wanted = embed(run, photos, tmp_path / "wanted", patches=True)
    found = embed(
        run, photos, tmp_path / "out", patches=True, format=form, dtype=dtype, label_column="label", rows_per_shard=5
    )
    assert found.features.dtype == found.patches.dtype == dtype
    assert np.array_equal(found.features, wanted.features.astype(dtype))
    assert np.array_equal(found.patches, wanted.patches.astype(dtype))
    assert found.paths == wanted.paths and found.ids.tolist() == SOUND and found.labels == [i // 6 for i in SOUND]


def test_parquet_is_read_by_datasets(run, photos, tmp_path):
    found = embed(run, photos, tmp_path / "out", patches=True, label_column="label", rows_per_shard=5)
    read = datasets.load_dataset("parquet", data_files=str(tmp_path / "out" / "*.parquet"), split="train")
    assert read["id"][:] == SOUND and read.features["label"].names == ["cat", "dog"]
    assert np.array_equal(np.array(read["embedding"][:], np.float32), found.features)
    assert np.array_equal(np.array(read["patches"][:], np.float32), found.patches)


@pytest.mark.parametrize(
    ("at", "is_stream"),
    [
        *((4, False), (7, True)),
        *(pytest.param(at, at == 4, marks=SLOW) for at in (0, 4, 7, 10)),
        *(pytest.param(at, True, marks=SLOW) for at in (0, 10)),
    ],
)
def test_a_run_that_was_stopped_goes_on(run, photos, tmp_path, monkeypatch, at, is_stream):
    """Stopped at any row, it writes no part again, and the files are those of a run that was not stopped."""
    source = write_parquet(tmp_path / "tables", photos) if is_stream else photos
    options = dict(rows_per_shard=2, batch_size=2, label_column="label")
    embed(run, source, tmp_path / "whole", **options)
    from poa_hf.embedding import features

    def opened(value, *words, **named):
        seen.append(value)
        if len(seen) > at + 1:  # one for trying the model out
            raise KeyboardInterrupt
        return original(value, *words, **named)

    original, seen = features.open_image, []
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(features, "open_image", opened)
        embed(run, source, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="does not hold all embeddings yet"):
        Embeddings.load(tmp_path / "out")
    complete = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.parquet")}
    assert len(complete) == at // 2
    (tmp_path / "out" / ".unfinished-part-00009.parquet").write_bytes(b"half")
    embed(run, source, tmp_path / "out", **options)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in complete} == complete


@pytest.mark.parametrize("is_stream", [pytest.param(False, marks=SLOW), True])
def test_a_part_that_is_missing_or_cut_short_is_written_again(run, photos, tmp_path, is_stream):
    source = write_parquet(tmp_path / "tables", photos) if is_stream else photos
    embed(run, source, tmp_path / "out", rows_per_shard=2)
    whole = files_of(tmp_path / "out")
    (tmp_path / "out" / "part-00001.parquet").unlink()
    last = tmp_path / "out" / "part-00003.parquet"
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"part 1 in .* is missing or of another size"):
        Embeddings.load(tmp_path / "out")
    embed(run, source, tmp_path / "out")
    assert files_of(tmp_path / "out") == whole


def test_a_finished_one_says_so(run, photos, tmp_path, caplog):
    caplog.set_level("INFO", "poa_hf")
    embed(run, photos, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len(embed(run, photos, tmp_path / "out")) == COUNT - 1
    assert f"is complete already: {COUNT - 1} images" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_embeddings_are_never_mixed(run, photos, tmp_path):
    out = tmp_path / "out"
    embed(run, photos, out, "small")
    before = files_of(out)
    others = {
        "size": dict(size="24x2"),
        "dataset.options": dict(split="train[:5]"),
        "dtype": dict(dtype="float16"),
        "patches": dict(patches=True),
        "format": dict(format="npy"),
        "label_column": dict(label_column="label"),
        "max_images": dict(max_images=3),
        "rows_per_shard": dict(rows_per_shard=3),
    }
    for name, options in others.items():
        with pytest.raises(ValueError, match=rf"holds embeddings of another .*{name} is .* give another --output"):
            embed(run, photos, out, **{"size": "small"} | options)
    model = PoaForPreTraining.from_pretrained(run)
    with torch.no_grad():
        model.teacher.layernorm.weight.mul_(1.5)
    model.save_pretrained(run.parent / "trained on")
    trained = load_subject(run.parent / "trained on")
    trained.name = "vit"
    for other in (run.parent / "trained on", trained):
        with pytest.raises(ValueError, match="embeddings of another model"):
            embed(other, photos, out, "small")
    assert files_of(out) == before


def test_a_folder_with_other_images_is_another_dataset(run, photos, tmp_path):
    folder = write_photos(tmp_path / "photos")
    embed(run, folder, tmp_path / "out")
    (folder / "dog" / "99.png").write_bytes((folder / names()[0]).read_bytes())
    with pytest.raises(ValueError, match=r"another dataset \(dataset.rows is 11 there, and 12 now\)"):
        embed(run, folder, tmp_path / "out")


def test_models_of_other_channels(tmp_path):
    torch.manual_seed(0)
    model = PoaViTModel(tiny_backbone(num_channels=5)).eval()
    processor = evaluation_processor(32, [0.5] * 5, [0.25] * 5, [0, 1000])
    # of the size that is resized to, so that only the middle is cut out
    images = [np.random.default_rng(seed).integers(0, 1000, (37, 37, 5)).astype(np.uint16) for seed in range(3)]
    found = embed(Subject("five", model, processor), [{"image": image} for image in images], tmp_path / "out")
    values = torch.tensor(np.stack(images)[:, 2:34, 2:34] / 1000).permute(0, 3, 1, 2)
    with torch.no_grad():
        wanted = model(((values * 255).round() / 255 - 0.5).div(0.25).float()).pooler_output.numpy()
    assert np.abs(found.features - wanted).max() < 0.02  # the values are stored in 8 bits
    assert np.abs(found.features).mean() > 0.3


def test_what_cannot_be_used_is_one_sentence(run, photos, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    mistakes = [
        (dict(output=tmp_path / "file"), "is a file: give --output the name of a folder"),
        (dict(output=tmp_path / "full"), "holds other files .notes.txt. and no embeddings.json"),
        (dict(dataset=tmp_path / "none"), "does not exist"),
        (dict(dataset=[]), "dataset is empty"),
        (dict(dataset=(row for row in [])), "is not a dataset"),
        (dict(dataset=datasets.DatasetDict(test=datasets.Dataset.from_dict({"a": [1]}))), r'dataset\["test"\]'),
        (dict(model=load_subject(run).model), "model is of the type PoaViTModel: give a folder or Hub id"),
        (dict(dataset=[{"image": b"no"}] * 3), "No image could be decoded .row 0"),
        (dict(model=tmp_path / "none"), "does not exist"),
        (dict(size="17x99"), "17x99"),
        (dict(format="csv"), "format is 'csv': choose from parquet, safetensors, npy"),
        (dict(dtype="int8"), "dtype is 'int8': choose from"),
        (dict(rows_per_shard=0), "rows_per_shard is 0: give a whole number of at least 1"),
        (dict(max_images=True), "max_images is True: give a whole number of at least 1"),
        (dict(batch_size=2.5), "batch_size is 2.5: give a whole number of at least 1"),
        (dict(label_column="colour"), "no column 'colour' for --label_column"),
        *(
            (
                dict(dataset=[{"image": Image.new("RGB", (9, 9)), "label": label}], label_column="label"),
                f"Row 0 has the label {label}, but whole numbers are kept up to 9223372036854775807: pass",
            )
            for label in (2**63, -(2**70))
        ),
    ]
    for options, sentence in mistakes:
        with pytest.raises(ValueError, match=sentence) as error:
            embed(**dict(model=run, dataset=photos, output=tmp_path / "out") | options)
        assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_features_beyond_float16_and_not_finite(tmp_path):
    config = Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    model = Dinov2Model(config).eval()
    images = [{"image": Image.new("RGB", (40, 40), (200, index, 7))} for index in range(2)]
    for value, sentence in ((1e6, "beyond float16: use --dtype float32"), (float("nan"), "are not finite")):
        with torch.no_grad():
            model.layernorm.weight.fill_(value)
        with pytest.raises(ValueError, match=sentence):
            embed(Subject("m", model, evaluation_processor(32)), images, tmp_path / str(value), dtype="float16")


def test_two_commands_do_not_write_one_folder(run, photos, tmp_path):
    from poa_hf.runs.lock import locked

    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / ".lock"), pytest.raises(ValueError, match="is being written by another command"):
        embed(run, photos, tmp_path / "out")
    assert len(embed(run, photos, tmp_path / "out")) == COUNT - 1


def test_links_of_strangers_are_not_followed(run, photos, tmp_path):
    outside, out = tmp_path / "outside", tmp_path / "out"
    embed(run, photos, out, rows_per_shard=3)
    (outside / "page").parent.mkdir()
    (outside / "page").write_text("theirs")
    (out / "part-00001.parquet").unlink()
    (out / "part-00001.parquet").symlink_to(outside / "page")
    (out / "skipped_images.jsonl").unlink()
    (out / "skipped_images.jsonl").symlink_to(outside / "page")
    assert len(embed(run, photos, out)) == COUNT - 1  # written anew in the place of the links
    assert (outside / "page").read_text() == "theirs" and len(list(outside.iterdir())) == 1
    (out / ".parts").rename(outside / "parts")
    (out / ".parts").symlink_to(outside / "parts")
    before = files_of(outside / "parts")
    with pytest.raises(ValueError, match="leads to another folder"):
        embed(run, photos, out)
    assert files_of(outside / "parts") == before


def test_a_token_reaches_no_file(run, photos, tmp_path, monkeypatch):
    def opened(name, config_name=None, split="train", token=None):
        assert (name, token) == ("me/images", "hf_me")
        return open_dataset(photos)

    monkeypatch.setenv("HF_TOKEN", "hf_me")
    monkeypatch.setattr("poa_hf.embedding.embed.open_dataset", opened)
    embed(run, "me/images", tmp_path / "out", dataset_options={"token": "hf_me"})
    written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) > 3 and not any(b"hf_me" in content for content in written)
