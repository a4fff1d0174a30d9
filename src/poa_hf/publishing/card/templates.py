"""Rendering of the templates of model cards, `*.md.jinja` in this folder."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jinja2

from .markdown import code


def render(template: str, **values: object) -> str:
    """Render a template of this folder; values must already be Markdown. A missing value is an error."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = lambda text, language: code(text.strip("\n"), language)
    return environment
