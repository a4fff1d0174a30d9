"""Our models in transformers' auto classes, without importing transformers before its user does.

`AutoModel.from_pretrained` of a model of ours works after `import poa_hf`, whichever of the two is imported first. The
models are registered by importing `poa_hf.models` (its `auto.py`):

- If transformers' auto classes are imported already, that is done at once.
- If not, a finder at the front of `sys.meta_path` waits for the two modules that define them, and does it as soon as
  either has been executed. It finds no other module, and leaves `sys.meta_path` when the second has been found.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# AutoConfig; AutoModel and its kin. Public names of transformers lead to these modules.
AUTO_MODULES = ("transformers.models.auto.configuration_auto", "transformers.models.auto.modeling_auto")


def register_when_imported() -> None:
    """Register our models with transformers' auto classes, now or when they are imported."""
    if any(name in sys.modules for name in AUTO_MODULES):
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    import_module("poa_hf.models")


class _Finder(MetaPathFinder):
    """Finds the modules of the auto classes as Python would, with a loader that then registers our models."""

    def __init__(self) -> None:
        self._awaited = set(AUTO_MODULES)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._awaited:
            return None
        self._awaited.remove(fullname)
        if not self._awaited:
            sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    """Executes a module by its own loader, then registers our models."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:  # for whoever asks for the module's source, as inspect does
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _register()
