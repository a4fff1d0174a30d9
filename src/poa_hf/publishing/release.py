"""A family as it is published: the files of each size's repo and of the supernet's, made when they are needed."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import BitImageProcessorPil as ImageProcessor

from ..data.processor import evaluation_processor
from ..elastic import SubNetwork
from ..models.modeling_poa_pretraining import PoaForPreTraining
from ..runs.facts import RunFacts
from ..runs.layout import PROCESSOR, RunFolder
from ..runs.load import load_run, resolve_run, run_processor
from .card.cards import CARD, write_card, write_supernet_card
from .card.metadata import card_problems
from .formats.format import Format, find_format
from .hub.names import NAME_TEMPLATE, repo_ids
from .supernet import model_files, public, size_table, write_records, write_table

_STAMP = re.compile(r"\n<!-- poa push ([0-9a-f]{32}) [0-9a-f]{32} -->\n$")


@dataclass(frozen=True)
class Files:
    """A repo's files by name: `model` is what is loaded, `records` tell of it (card, picture, tables)."""

    model: dict[str, Path]
    records: dict[str, Path]

    @property
    def all(self) -> dict[str, Path]:
        return {**self.model, **self.records}

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.all.values())


@dataclass(frozen=True)
class Family:
    """The sizes of a run to publish, with the ids of their repos and the supernet's (None: that is not published)."""

    model: PoaForPreTraining
    run: Path
    facts: RunFacts
    format: Format
    processor: ImageProcessor
    ids: Mapping[SubNetwork, str]
    supernet: str | None

    @classmethod
    def of(
        cls,
        run: str | Path,
        sizes: str,
        namespace: str,
        template: str = NAME_TEMPLATE,
        format: str | None = None,
        supernet: bool = True,
        **owner: str | None,
    ) -> Family:
        """The family of a run (output_dir, checkpoint, saved model or the Hub id of a supernet).

        Args:
            sizes: Names and sizes with commas, or `all`.
            owner: What its owner says of it, as `license`: see `RunFacts.of`.

        Raises:
            ValueError: If there is no such run, size or format, or a repo would get a name that the Hub does not take.
        """
        if format == "onnx":  # an export differs from one version of its libraries to the next, so cannot be compared
            raise ValueError("poa push publishes safetensors: for ONNX, poa extract --format onnx and hf upload.")
        folder = resolve_run(run)
        model = load_run(folder)
        config = model.config.backbone_config
        wanted = config.space if sizes == "all" else map(config.space.resolve, sizes.split(","))
        supernet_id, ids = repo_ids(config, dict.fromkeys(wanted), namespace, template)
        facts = RunFacts.of(model, folder, **owner)
        evaluations = (replace(record, dataset=public(record.dataset)) for record in facts.evaluations)
        return cls(
            model=model,
            run=folder,
            facts=replace(facts, evaluations=tuple(evaluations)),
            format=find_format(model.teacher.stock_class.config_class.model_type, format),
            processor=run_processor(folder) or evaluation_processor(config.image_size),
            ids=ids,
            supernet=supernet_id if supernet else None,
        )

    def size_files(self, size: SubNetwork, folder: Path) -> Files:
        """Write the repo of one size into an empty folder."""
        artifact = self.format.convert(self.model.teacher.extract(size), self.processor)
        artifact.save(folder)
        model = {path.name: path for path in sorted(folder.iterdir())}
        write_card(folder, self.facts, size, self.format, self.ids[size], artifact.num_parameters, self.supernet)
        return self._with_records(folder, model)

    def supernet_files(self, folder: Path, published: Mapping[SubNetwork, str]) -> Files:
        """Write the supernet's repo into an empty folder, but for what already lies in the run's; `published` are the
        sizes that its table and card name."""
        model = model_files(self.run)
        if PROCESSOR not in model:
            self.processor.save_pretrained(folder)
            model |= {path.name: path for path in folder.iterdir()}
        write_supernet_card(folder, self.facts, self.supernet, dict(published))
        write_records(folder, self.run)
        write_table(folder, size_table(self.facts, self.supernet, published))
        return self._with_records(folder, model)

    def _with_records(self, folder: Path, model: dict[str, Path]) -> Files:
        problems = card_problems((folder / CARD).read_text(encoding="utf-8"))
        if problems:
            raise ValueError(f"The Hub would refuse this card: {problems[0]}")
        link = self.facts.owner.license_link
        if link and "/" not in link and (RunFolder.containing(self.run).path / link).is_file():
            shutil.copyfile(RunFolder.containing(self.run).path / link, folder / link)
        quality = [(str(size), value) for size, value in sorted(self.facts.quality.values.items())]
        _stamp(folder / CARD, json.dumps([self.facts.quality.name, quality]))
        return Files(model, {path.name: path for path in sorted(folder.iterdir()) if path.name not in model})


def _stamp(card: Path, drawn: str) -> None:
    """Add a comment with the card's hash, by which a later push tells whether anyone has edited it since, and that of
    what its picture shows, so that a card with another picture is another card."""
    text = card.read_text(encoding="utf-8")
    card.write_text(f"{text}\n<!-- poa push {_digest(text)} {_digest(drawn)} -->\n", encoding="utf-8", newline="\n")


def is_unedited(card: bytes) -> bool:
    """Whether a card is as `poa push` wrote it."""
    text = card.decode("utf-8", errors="replace")
    stamp = _STAMP.search(text)
    return stamp is not None and _digest(text[: stamp.start()]) == stamp[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
