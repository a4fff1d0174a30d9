"""The nearest images, and the pages that show them."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from poa_hf import Embeddings, PoaForPreTraining, embed
from poa_hf.data.processor import evaluation_processor
from poa_hf.embedding.nearest import features_of, nearest, open_queries
from poa_hf.embedding.page import write_index_page, write_query_page

from ..conftest import save_run, tiny_config
from .photos import BROKEN, COUNT, names, write_parquet, write_photos

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with `photos`, a `run`, and the `embeddings` of the photographs by it, in parts of 3 rows."""
    folder = tmp_path_factory.mktemp("index")
    write_photos(folder / "photos")
    torch.manual_seed(1)
    save_run(PoaForPreTraining(tiny_config()), folder / "run")
    evaluation_processor(32).save_pretrained(folder / "run")
    embed(folder / "run", folder / "photos", folder / "embeddings", "small", rows_per_shard=3, label_column="label")
    return folder


@pytest.fixture
def embeddings(place):
    return Embeddings.load(place / "embeddings")


@pytest.mark.parametrize("top", [1, 4, 99])
def test_the_nearest_are_those_of_scikit_learn(embeddings, top):
    features = embeddings.features
    queries = np.random.default_rng(0).normal(size=(3, features.shape[1])).astype(np.float32)
    count = min(top, len(features))
    distance, places = NearestNeighbors(metric="cosine", algorithm="brute").fit(features).kneighbors(queries, count)
    found = nearest(embeddings, queries, top)
    assert [[each.id for each in of_one] for of_one in found] == embeddings.ids[places].tolist()
    assert np.allclose([[each.similarity for each in of_one] for of_one in found], 1 - distance, atol=1e-5)
    assert found[0][0].path == names()[found[0][0].id] and found[0][0].label in ("cat", "dog")


def test_a_photograph_finds_itself(place, embeddings):
    photos = [place / "photos" / names()[index] for index in (0, 7)]
    queries = open_queries(embeddings, photos)
    features = features_of(embeddings, [query.image for query in queries])
    found = nearest(embeddings, features, 2)
    assert [of_one[0].id for of_one in found] == [0, 7]
    assert all(abs(of_one[0].similarity - 1) < 1e-5 for of_one in found)
    assert [of_one[0].id for of_one in nearest(embeddings, features, 2, without=[0, 7])] != [0, 7]


def test_features_that_nothing_is_near_to(embeddings):
    queries = torch.ones(4, embeddings.features.shape[1])
    with pytest.raises(ValueError, match="without has 1 rows for 4 queries: give one for each, or none"):
        nearest(embeddings, queries, without=[0])
    queries[2, 0] = float("nan")
    with pytest.raises(ValueError, match="Some features are not finite"):
        nearest(embeddings, queries)


def test_queries_that_are_no_images(place, embeddings, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for photo, sentence in [
        (tmp_path / "none.jpg", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "notes.txt", "cannot be read as an image"),
        (place / "photos" / names()[BROKEN], "cannot be read as an image"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            open_queries(embeddings, [photo])


def test_a_model_that_has_moved_or_changed(place, embeddings, tmp_path):
    image = [Image.new("RGB", (40, 40))]
    wanted = features_of(embeddings, image)
    shutil.copytree(place / "run", tmp_path / "moved")
    assert torch.equal(features_of(embeddings, image, tmp_path / "moved"), wanted)
    model = PoaForPreTraining.from_pretrained(tmp_path / "moved")
    with torch.no_grad():
        model.teacher.layernorm.weight.mul_(1.01)
    model.save_pretrained(tmp_path / "moved")
    with pytest.raises(ValueError, match="is not the model of .* or has been trained since"):
        features_of(embeddings, image, tmp_path / "moved")
    embeddings.manifest.model["source"] = str(tmp_path / "gone")
    with pytest.raises(ValueError, match="is no longer at .*: give its folder as MODEL"):
        features_of(embeddings, image)


def test_the_page_of_an_index(place, embeddings, tmp_path):
    text = write_index_page(embeddings, tmp_path / "page.html", num_images=4, top=3).read_text()
    shown = [int(number) for number in re.findall(r'<section id="image-(\d+)"', text)]
    assert shown[0] == 0 and shown[-1] == COUNT - 1 and len(shown) == 4
    pictures = json.loads(re.search(r"const pictures = (\{.*?\});", text)[1])
    assert {str(index) for index in shown} <= set(pictures) and str(BROKEN) not in pictures
    features = torch.nn.functional.normalize(torch.tensor(embeddings.features))
    order = (features @ features.T).fill_diagonal_(-2).argsort(dim=1, descending=True)[:, :3]
    first = text[text.index('id="image-0"') : text.index(f'id="image-{shown[1]}"')]
    assert re.findall(r"<br>(.+?)<", first) == [embeddings.paths[place] for place in order[0]]
    assert "http" not in text  # nothing of other places


@pytest.mark.parametrize("source", ["tables", "gone", "in memory"])
def test_pictures_of_other_sources(place, tmp_path, caplog, source):
    photos = place / "photos"
    if source == "tables":
        dataset = str(write_parquet(tmp_path / "tables", photos))
    else:
        dataset = (
            write_photos(tmp_path / "photos") if source == "gone" else [Image.new("RGB", (9, 9), n) for n in (1, 2)]
        )
    made = embed(place / "run", dataset, tmp_path / "out", rows_per_shard=3)
    if source == "gone":
        shutil.rmtree(tmp_path / "photos")
    text = write_index_page(made, num_images=5, top=2).read_text()
    pictures = json.loads(re.search(r"const pictures = (\{.*?\});", text)[1])
    if source != "tables":
        assert not pictures and "the page shows names alone: name the dataset by --dataset_name" in caplog.text
        return
    of_folder = write_index_page(Embeddings.load(place / "embeddings"), tmp_path / "b.html", num_images=5, top=10)
    wanted = json.loads(re.search(r"const pictures = (\{.*?\});", of_folder.read_text())[1])
    assert len(pictures) > 4 and all(wanted[index] == uri for index, uri in pictures.items())


def test_names_of_strangers_stay_text(place, tmp_path):
    images = [{"image": {"bytes": (place / "photos" / names()[n]).read_bytes(), "path": name}} for n, name in
              enumerate(["<script>alert(1)</script>", "\x1b[2J\x07", "</script><b>", "a'b\"c"])]  # fmt: skip
    made = embed(place / "run", images, tmp_path / "out")
    text = write_index_page(made, dataset=images).read_text()
    assert "<script>alert" not in text and "\x1b" not in text and text.count("</script>") == 1
    assert "&lt;script&gt;alert(1)" in text


def test_pages_that_are_there_already(embeddings, tmp_path):
    page = tmp_path / "page.html"
    write_index_page(embeddings, page, num_images=2)
    write_index_page(embeddings, page, num_images=3)
    page.write_text("<p>mine</p>")
    for path in (page, tmp_path, tmp_path / "none" / "page.html"):
        with pytest.raises(ValueError, match="give another --output|give --output the name of a file"):
            write_index_page(embeddings, path)
    assert page.read_text() == "<p>mine</p>"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_in_a_browser(place, embeddings, tmp_path, width, dark):
    """Nothing is wider than the page, one image is shown with its neighbours, and its address shows another one."""
    photo = tmp_path / ("a long name " * 8 + ".png")
    shutil.copy(place / "photos" / names()[2], photo)
    queries = open_queries(embeddings, [photo])
    found = nearest(embeddings, features_of(embeddings, [queries[0].image]))
    pages = [
        write_index_page(embeddings, tmp_path / "index.html"),
        write_query_page(embeddings, queries, found, tmp_path / "query.html"),
    ]
    for page in pages:
        is_index = page.name == "index.html"
        script = (
            "<script>const all = [...document.querySelectorAll('.one')];"
            "const seen = () => all.filter(e => e.offsetHeight).map(e => e.id);"
            "const first = seen();" + ("location.hash = '#image-7';" if is_index else "") + "setTimeout(() => {"
            "document.title = JSON.stringify([document.documentElement.scrollWidth, innerWidth, first, seen(),"
            "[...document.images].filter(e => e.offsetHeight).every(image => image.naturalWidth > 0),"
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]])}, 300)</script>"
        )
        page.write_text(page.read_text().replace("</body>", f"{script}</body>"))
        frame = tmp_path / "frame.html"
        frame.write_text(
            f"<body style='margin:0'><iframe id=f src='{page.name}' style='width:{width}px;height:900px;border:0'>"
            "</iframe><script>setTimeout(() => document.title = f.contentDocument.title, 1500)</script>"
        )
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        options += ["--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files"]
        options += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(width, 500)},900"]
        options += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
        options += ["--virtual-time-budget=5000", "--dump-dom", frame.as_uri()]
        result = subprocess.run([CHROMIUM, *options], capture_output=True, text=True, timeout=100)
        match = re.search(r"<title>(.*?)</title>", result.stdout)
        assert match, result.stderr[-2000:]
        wide, window, first, second, loaded, colors = json.loads(match[1])
        assert window == width and wide <= width and loaded
        assert (first, second) == ((["image-0"], ["image-7"]) if is_index else (["image-0"], ["image-0"]))
        ink, page_color = (sum(map(int, re.findall(r"\d+", color)[:3])) / 765 for color in colors)
        assert (ink > 0.8 and page_color < 0.2) if dark else (ink < 0.2 and page_color > 0.8)
