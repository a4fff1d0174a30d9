import sys

from PIL import Image

from poa_hf import SubNetwork

from ...conftest import tiny_config
from .helpers import FLOPS, SIZE, facts_of, record, tables, written


def test_the_picture_shows_quality_where_it_was_measured_and_marks_the_size(tmp_path):
    measured = [record(str(size), value=0.1 * i) for i, size in enumerate(tiny_config().backbone_config.space, 1)]
    pictures = {}
    for facts, texts in ((facts_of(*measured), "20-NN accuracy against"), (facts_of(measured[0]), "FLOPs against")):
        for size in (SIZE, SubNetwork(32, 3)):
            card = written(tmp_path / f"{size}", facts, size=size)
            assert texts in card.text and "](family.png)" in card.text
            image = Image.open(tmp_path / f"{size}" / "family.png")
            assert image.format == "PNG" and image.getpixel((0, 0)) == (255, 255, 255, 255) and image.width < 800
            pictures[texts, size] = image.tobytes()
    assert len(set(pictures.values())) == 4


def test_a_size_that_was_not_measured_is_marked_among_the_costs(tmp_path):
    card = written(tmp_path, facts_of(record("16x1"), record("32x3")))
    assert "FLOPs against parameters" in card.text
    assert tables(card)[0][1] == ["this", "16x2", "10k", FLOPS["16x2"], ""]


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    card = written(tmp_path, facts_of())
    assert "family.png" not in card.text and not (tmp_path / "family.png").exists() and len(tables(card)) == 2
