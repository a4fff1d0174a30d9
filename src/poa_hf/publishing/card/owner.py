"""The facts that the owner of a run states in `card.yaml`."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from ...locations import is_hub_id
from ...runs.layout import RunFolder
from ...yaml_files import located, read_mapping
from .metadata import check_license

# HTML tags and comments, and the targets of links that a browser would run instead of opening
_HTML = re.compile(
    r"<(?!https?://|mailto:)[A-Za-z!/?][^>\n]{0,40}|\]\s*[(:][\s<]*(?:javascript|vbscript|data)\s*:", re.IGNORECASE
)


@dataclass(frozen=True)
class OwnerFacts:
    """Facts that no run can know about itself, from `card.yaml` in its folder.

    Args:
        license: The licence of the weights: an identifier of the Hub, or `other` with its name and link.
        license_name: The name of another licence.
        license_link: A web address, or the name of a file in the run's folder.
        dataset: The Hub id of the training images, if the run read them from elsewhere.
        contact: Whom to ask.
        about: A paragraph of Markdown about the model.

    Raises:
        ValueError: If the Hub does not know the licence, `dataset` is not a Hub id, a value is not text, or `about`
            holds HTML.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    dataset: str | None = None
    contact: str | None = None
    about: str | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and not (isinstance(value, str) and value.strip()):
                raise ValueError(f"{each.name} {value!r} is not text: write some, or leave it out.")
        if self.about and (match := _HTML.search(self.about)):
            raise ValueError(f"about holds {match[0]!r}, which a browser would act on: write plain Markdown.")
        check_license(self.license, self.license_name, self.license_link)
        if self.dataset is not None and not is_hub_id(self.dataset):
            raise ValueError(f"dataset {self.dataset!r} is not a Hub id: write it as namespace/name.")

    @classmethod
    def read(cls, run: RunFolder | None, **values: str | None) -> OwnerFacts:
        """Read a run's `card.yaml`; without that file, nothing is known.

        Args:
            values: Fields that replace those of the file; None keeps a field. A licence is replaced as a
                whole, with its name and link.

        Raises:
            ValueError: If the file cannot be read, or has an unknown key or a wrong value.
        """
        replaced = {name: value for name, value in values.items() if value is not None}
        if run is None or not run.owner.exists():
            return cls(**replaced)
        path = run.owner
        content = read_mapping(path)
        known = [each.name for each in fields(cls)]
        if not content.keys() <= set(known):
            raise ValueError(f"{path} must hold `key: value` lines with keys of {', '.join(known)}.")
        try:
            with located(content):
                saved = vars(cls(**content))
        except ValueError as error:
            raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error
        if "license" in replaced:
            saved = saved | {"license_name": None, "license_link": None}
        return cls(**(saved | replaced))
