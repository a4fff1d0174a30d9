"""A griffe extension: the sections `Example:` of our docstrings are rendered as code."""

import re
import textwrap
from typing import Any

import griffe

_SECTION = re.compile(r"^( *)Example:\n((?:(?:\1 +.*)?(?:\n|$))+)", re.M)


class ExampleSections(griffe.Extension):
    """Makes `Examples:` of them, which griffe knows; code that is no doctest is put between fences."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _SECTION.sub(_as_code, obj.docstring.value)


def _as_code(match: re.Match[str]) -> str:
    margin, text = match[1], match[2]
    if ">>>" not in text and "```" not in text:
        text = textwrap.indent(f"```python\n{textwrap.dedent(text).strip()}\n```\n", f"{margin}    ")
    return f"{margin}Examples:\n{text}"
