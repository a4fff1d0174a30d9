"""A griffe extension: the sections `Example:` of our docstrings are rendered like `Examples:`, as code."""

import re
from typing import Any

import griffe


class ExampleSections(griffe.Extension):
    """Renames the section, which griffe would otherwise take for an admonition of plain text."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
