"""Old paths of modules that have moved, kept for one release.

`import poa_hf.training.recipe`, `from poa_hf.training.recipe import parse_recipe` and `import_module` still work for
every module of `MODULES`, each with one `DeprecationWarning` that names the new path. All of this is removed
in version 0.3.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:  # importlib.abc takes longer to import than all the rest
    Loader = MetaPathFinder = object

# Old module -> new module; the old path gives the new module itself.
MODULES = {
    "cli.hub_timeout": "hub.timeout",
    "command_line": "cli.parser",
    "evaluation.average_precision": "evaluation.statistics.average_precision",
    "evaluation.backgrounds": "evaluation.alterations.backgrounds",
    "evaluation.challenge": "evaluation.data.challenge",
    "evaluation.clustering": "evaluation.tasks.clustering",
    "evaluation.coinciding": "evaluation.data.coinciding",
    "evaluation.command": "cli.evaluate",
    "evaluation.comparing": "evaluation.statistics.comparing",
    "evaluation.comparing_table": "evaluation.statistics.comparing_table",
    "evaluation.corruptions": "evaluation.alterations.corruptions",
    "evaluation.costs": "selection.costs",
    "evaluation.evaluate": "evaluation.evaluator",
    "evaluation.evaluation_data": "evaluation.data.evaluation_data",
    "evaluation.examples": "evaluation.alterations.examples",
    "evaluation.holdout": "evaluation.data.holdout",
    "evaluation.image_work": "evaluation.images.image_work",
    "evaluation.intervals": "evaluation.statistics.intervals",
    "evaluation.knn": "evaluation.tasks.knn",
    "evaluation.label_column": "evaluation.data.label_column",
    "evaluation.latency": "selection.latency",
    "evaluation.layer_features": "evaluation.images.layer_features",
    "evaluation.layers": "evaluation.images.layers",
    "evaluation.lowshot": "evaluation.tasks.lowshot",
    "evaluation.masked": "evaluation.data.masked",
    "evaluation.measured": "evaluation.images.measured",
    "evaluation.own_data": "evaluation.data.own_data",
    "evaluation.paired": "evaluation.statistics.paired",
    "evaluation.pictures": "figures.patches",
    "evaluation.plots": "figures.images",
    "evaluation.prepared": "evaluation.images.prepared",
    "evaluation.probe": "evaluation.tasks.probe",
    "evaluation.records": "runs.evaluations",
    "evaluation.report": "report.page",
    "evaluation.report_charts": "figures.charts",
    "evaluation.report_command": "cli.report",
    "evaluation.report_numbers": "report.numbers",
    "evaluation.report_pictures": "report.pictures",
    "evaluation.report_records": "runs.facts",
    "evaluation.report_section": "report.section",
    "evaluation.retrieval": "evaluation.tasks.retrieval",
    "evaluation.saliency": "evaluation.alterations.saliency",
    "evaluation.select": "selection.select",
    "evaluation.select_command": "cli.select",
    "evaluation.sharing": "evaluation.processes",
    "evaluation.sources": "evaluation.data.sources",
    "evaluation.split_features": "evaluation.images.split_features",
    "evaluation.split_rows": "evaluation.data.split_rows",
    "evaluation.subjects": "evaluation.subject",
    "evaluation.views": "evaluation.alterations.views",
    "figures.opened": "evaluation.opened",
    "losses": "objective.losses",
    "models.early_gradients": "objective.early_gradients",
    "models.head_losses": "objective.head_losses",
    "models.heads": "objective.heads",
    "official_files": "official.files",
    "official_sizes": "official.config",
    "publishing.card_results": "publishing.card.results",
    "publishing.card_text": "publishing.card.values",
    "publishing.convert_command": "cli.convert",
    "publishing.family": "publishing.release",
    "publishing.family_picture": "publishing.card.picture",
    "publishing.hub.client": "hub.client",
    "publishing.hub.retrying": "hub.retrying",
    "publishing.markdown": "publishing.card.markdown",
    "publishing.metadata": "publishing.card.metadata",
    "publishing.names": "publishing.hub.names",
    "publishing.onnx_format": "publishing.formats.onnx",
    "publishing.push_command": "cli.push",
    "publishing.retrying": "hub.retrying",
    "publishing.run_facts": "runs.facts",
    "publishing.run_files": "runs.publishable",
    "publishing.supernet": "publishing.card.size_table",
    "publishing.timm_format": "publishing.formats.timm",
    "publishing.vit_format": "publishing.formats.vit",
    "training.checkpoints": "runs.checkpoints",
    "training.compute": "runs.training_time",
    "training.hub_runs": "runs.hub",
    "training.nonfinite": "training.monitoring",
    "training.recipe": "cli.recipe",
    "training.runlog": "training.monitoring",
    "training.runs": "runs.load",
    "training.warm_start": "warm_start.load",
    "training.warm_start_config": "warm_start.config",
    "training.warm_start_recipe": "warm_start.defaults",
}

# Old module -> names that are now in another module than the rest. Where the old path still exists (as a package, or as
# a module that lost some of its names), only these names are redirected, by its `__getattr__ = moved_names(__name__)`.
NAMES: dict[str, dict[str, str]] = {
    "evaluation.command": {
        "column_title": "evaluation.table",
    },
    "evaluation.costs": {
        "elastic_config": "models.elastic_config",
        "image_shape": "models.elastic_config",
    },
    "official": {
        "OfficialWeights": "official.weights",
        "load_official_checkpoint": "official.weights",
        "select_weights": "official.weights",
        "to_our_layout": "official.weights",
        "check_is_elastic": "official.names",
        "likely_family": "official.names",
        "parameter_names": "official.names",
    },
    "publishing.card": {
        "write_card": "publishing.card.cards",
        "write_supernet_card": "publishing.card.cards",
    },
    "publishing.formats": {
        "Artifact": "publishing.formats.format",
        "Format": "publishing.formats.format",
        "find_format": "publishing.formats.format",
    },
    "publishing.hub": {
        "Hub": "hub.client",
        "HubError": "hub.client",
    },
    "publishing.supernet": {
        "model_files": "runs.publishable",
    },
    "slicing": {
        "ElasticModelMixin": "models.elastic_model",
    },
    "training.recipe": {
        "model_config": "models.from_fields",
        "read_model_section": "models.from_fields",
    },
    "training.runlog": {
        "JsonLines": "runs.json_lines",
    },
    "training.warm_start_config": {
        "Source": "warm_start.source",
        "find_source": "warm_start.source",
        "shown_name": "locations",
    },
}


def install() -> None:
    """Let Python find modules under their old paths, after it has looked everywhere else."""
    if not any(isinstance(finder, _OldPaths) for finder in sys.meta_path):
        sys.meta_path.append(_OldPaths())


def moved_names(module: str) -> Callable[[str], Any]:
    """Return a `__getattr__` for a module that still exists, which finds the names that it no longer defines."""
    names = NAMES[module.removeprefix("poa_hf.")]

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        _warn(f"{module}.{name}", f"poa_hf.{names[name]}.{name}", stacklevel=3)
        value = getattr(import_module(f"poa_hf.{names[name]}"), name)
        setattr(sys.modules[module], name, value)  # so that one use warns once
        return value

    return find


class _OldPaths(MetaPathFinder):
    """Finds modules under their old paths."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("poa_hf.") or fullname.removeprefix("poa_hf.") not in MODULES:
            return None
        return spec_from_loader(fullname, _OldPathLoader())


class _OldPathLoader(Loader):
    """Puts the new module in the place of the old one."""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = f"poa_hf.{MODULES[old.removeprefix('poa_hf.')]}"
        _warn(old, new, stacklevel=3)
        names = NAMES.get(old.removeprefix("poa_hf."))
        if names is None:
            sys.modules[old] = import_module(new)
            return

        def find(name: str) -> Any:
            return getattr(import_module(f"poa_hf.{names[name]}" if name in names else new), name)

        module.__getattr__ = find  # type: ignore[method-assign]


def _warn(old: str, new: str, stacklevel: int) -> None:
    warnings.warn(
        f"{old} is now {new}; the old path is removed in version 0.3.", DeprecationWarning, stacklevel=stacklevel
    )
