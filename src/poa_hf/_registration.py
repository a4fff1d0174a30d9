"""Our models in transformers' auto classes, without importing transformers before its user does.

`AutoModel.from_pretrained` of a model of ours works after `import poa_hf`, whichever of the two is imported first. The
models are registered by importing `poa_hf.models` (its `auto.py`):

- If transformers' auto classes are imported already, this is done at once.
- If not, a finder at the front of `sys.meta_path` waits for the import of the module that defines `AutoConfig`, and
  then removes itself. Importing our models at that moment would be too early, as the modules that import `AutoConfig`
  are unfinished. So the first call of `AutoConfig.from_pretrained` or `AutoConfig.for_model` imports them; every other
  auto class calls one of the two.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader, MetaPathFinder
else:  # importlib.abc takes longer to import than all the rest
    Loader = MetaPathFinder = object

# The module of AutoConfig; `transformers.AutoConfig` leads to it.
AUTO_MODULE = "transformers.models.auto.configuration_auto"
_FIRST_USES = ("from_pretrained", "for_model")


def register_when_needed() -> None:
    """Register our models with transformers' auto classes: now, or when they are first used."""
    if AUTO_MODULE in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register() -> None:
    import_module("poa_hf.models")


def _register_at_first_use(auto_config: type) -> None:
    """Replace two class methods until one of them is called, which registers our models and puts both back."""
    originals = {name: vars(auto_config)[name] for name in _FIRST_USES}

    def replacement(name: str) -> classmethod:
        @functools.wraps(originals[name].__func__)
        def method(cls: type, *args: Any, **options: Any) -> Any:
            for each, original in originals.items():
                setattr(auto_config, each, original)
            _register()
            return getattr(cls, name)(*args, **options)

        return classmethod(method)

    for name in _FIRST_USES:
        setattr(auto_config, name, replacement(name))


class _Finder(MetaPathFinder):
    """Finds the module of `AutoConfig` as Python would, with a loader that prepares the registration."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO_MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _PreparingLoader(spec.loader)
        return spec


class _PreparingLoader(Loader):
    """Executes a module by its own loader, then prepares the registration."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:  # for callers that read the module's source, such as inspect
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _register_at_first_use(module.AutoConfig)
