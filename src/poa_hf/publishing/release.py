"""A release: the sizes of a run that are published together, and the files of their repositories."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import BitImageProcessorPil as ImageProcessor

from ..data.processor import usual_processor
from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..runs.atomic import write_json
from ..runs.layout import PROCESSOR, SIZES
from ..runs.load import load_run, resolve_run, run_processor
from ..runs.publishable import check_no_links, model_files, without_local_paths, write_run_files
from ..sub_network import SubNetwork
from .card.cards import CARD, write_card, write_supernet_card
from .card.facts import CardFacts
from .card.metadata import card_problems
from .card.size_table import size_table
from .card.stamp import add_stamp
from .formats.format import Format, find_format, format_to_publish
from .hub.names import NAME_TEMPLATE, repo_ids


@dataclass(frozen=True)
class RepoFiles:
    """The local files of a repository, by their names in it.

    Args:
        model: The files that the model is loaded from.
        documents: The files that describe it: card, picture, tables, and those of the run.
    """

    model: dict[str, Path]
    documents: dict[str, Path]

    @property
    def all(self) -> dict[str, Path]:
        return {**self.model, **self.documents}

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.all.values())


@dataclass(frozen=True)
class Release:
    """The sizes of a run that are published together, each in a separate repository. Made by `from_run`.

    The files of a repository are written when they are asked for.

    Args:
        model: The model that holds all sizes.
        run: The folder of that model: of a run or of one of its checkpoints.
        facts: The facts that the cards state about the run.
        format: The format of the sizes.
        processor: The image processor of all repositories.
        ids: The ids of the sizes' repositories.
        supernet: The id of the supernet's repository, or None if it is not published.
    """

    model: PoaForPreTraining
    run: Path
    facts: CardFacts
    format: Format
    processor: ImageProcessor
    ids: Mapping[SubNetwork, str]
    supernet: str | None

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        sizes: str,
        namespace: str,
        template: str = NAME_TEMPLATE,
        format: str | None = None,
        supernet: bool = True,
        **owner: str | None,
    ) -> Release:
        """Load a run's model and decide what is published under which names.

        Args:
            run: `output_dir` of a run, one of its checkpoints, a saved model, or the Hub id of a supernet.
            sizes: Names and sizes separated by commas, or `all`.
            namespace: The user or organisation that the repositories belong to.
            template: The names of repositories (see `hub.names.repo_name`).
            format: The format's name; by default the family's stock one, but `timm` for a ResNet that timm can hold,
                which transformers loads without remote code.
            supernet: Whether the supernet is published too.
            owner: Fields of `OwnerFacts`, such as `license`.

        Raises:
            ValueError: If there is no such run, size or format, or the Hub would not take the name of a repository.
        """
        if format == "onnx":  # an export differs between versions of its libraries, so it cannot be compared
            raise ValueError("poa push does not publish ONNX: use poa extract --format onnx, then hf upload.")
        folder = resolve_run(run)
        check_no_links(folder)
        model = load_run(folder)
        config = model.config.backbone_config
        named = [name for each in sizes.split(",") if (name := each.strip())]
        if not named:
            raise ValueError(f"{sizes!r} names no size: give names or sizes separated by commas, or all.")
        wanted = config.space if named == ["all"] else map(config.space.resolve, named)
        supernet_id, ids = repo_ids(config, dict.fromkeys(wanted), namespace, template)
        processor = run_processor(folder) or usual_processor(config)
        if format is None:  # what can be held does not depend on the size
            target = format_to_publish(model.teacher.extract(next(iter(ids))), processor)
        else:
            target = find_format(config.stock_config_class.model_type, format)
        facts = CardFacts.read(model, folder, **owner)
        _ = facts.licence_file  # before any work
        evaluations = tuple(
            replace(record, dataset=without_local_paths(record.dataset)) for record in facts.run.evaluations
        )
        return cls(
            model=model,
            run=folder,
            facts=replace(facts, run=replace(facts.run, evaluations=evaluations)),
            format=target,
            processor=processor,
            ids=ids,
            supernet=supernet_id if supernet else None,
        )

    @classmethod
    def of(cls, *args: Any, **options: Any) -> Release:
        """Deprecated name of `from_run`."""
        warnings.warn("Release.of is called Release.from_run; 0.2 removes the old name.", DeprecationWarning, 2)
        return cls.from_run(*args, **options)

    def size_files(self, size: SubNetwork, folder: Path) -> RepoFiles:
        """Write the repository of one size into an empty folder."""
        artifact = self.format.convert(self.model.teacher.extract(size), self.processor)
        artifact.save(folder)
        model = _files_in(folder)
        name, parameters = self.ids[size], artifact.num_parameters
        write_card(folder, self.facts, size, self.format, name, parameters, self.supernet, artifact.hints(name))
        return self._with_documents(folder, model)

    def supernet_files(self, folder: Path, published: Mapping[SubNetwork, str]) -> RepoFiles:
        """Write the supernet's repository into an empty folder, without the run's files that are published unchanged.

        Args:
            folder: The empty folder.
            published: The repositories that the card and the table of sizes name.
        """
        if self.supernet is None:
            raise ValueError("This release has no supernet: make it with supernet=True.")
        model = model_files(self.run, folder)
        if PROCESSOR not in model:
            self.processor.save_pretrained(folder)
            model |= _files_in(folder)
        write_supernet_card(folder, self.facts, self.supernet, published)
        write_run_files(folder, self.run, self.facts.run.started_from)
        write_json(folder / SIZES, size_table(self.facts, self.supernet, published), indent=1)
        return self._with_documents(folder, model)

    def _with_documents(self, folder: Path, model: dict[str, Path]) -> RepoFiles:
        """Add the owner's licence and the card's stamp, and list the files.

        Raises:
            ValueError: If the Hub would refuse the card.
        """
        card = folder / CARD
        problems = card_problems(card.read_text(encoding="utf-8"))
        if problems:
            raise ValueError(f"The Hub would refuse this card: {problems[0]}")
        if (licence := self.facts.licence_file) is not None:
            shutil.copyfile(licence, folder / licence.name)
        drawn: list[object] = ["", []]
        if (quality := self.facts.quality) is not None:
            drawn = [quality.name, [(str(size), value) for size, value in sorted(quality.values.items())]]
        add_stamp(card, json.dumps(drawn))
        return RepoFiles(model, {name: path for name, path in _files_in(folder).items() if name not in model})


def _files_in(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.iterdir())}


def __getattr__(name: str) -> Any:
    if name == "Family":
        warnings.warn(
            "poa_hf.publishing.release.Family is called Release; 0.2 removes the old name.", DeprecationWarning, 2
        )
        return Release
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
