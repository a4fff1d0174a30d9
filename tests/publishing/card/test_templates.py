import jinja2
import pytest

from poa_hf.publishing.card.templates import render


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="caption"):
        render("picture.md.jinja")


def test_values_are_markdown_already():
    assert render("picture.md.jinja", caption="a < b") == "![a < b](family.png)\n\na < b.\n\n"
    assert render("picture.md.jinja", caption="") == ""
