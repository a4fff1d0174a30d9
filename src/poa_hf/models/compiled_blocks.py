"""Compilation of single blocks, whose code serves the teacher, the intact student and all elastic sizes, and of losses.

The code of a block depends on its widths and on the shapes of the batch, not on its place in the model or on the
model's depth: parameters are inputs. So the 11 widths of a published ViT serve all of its 143 sizes. What losses
compute of a chunk of rows of logits is compiled for any number of rows, once for each number of prototypes.
"""

from __future__ import annotations

import functools
import logging
import os
import time
import types
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.utils._pytree import tree_leaves

from ..formatting import one_line
from ..objective.row_functions import PLAIN, RowFunctions, Rows

logger = logging.getLogger(__name__)

# Where the compiler keeps its code unless TORCHINDUCTOR_CACHE_DIR says otherwise; torch would take a temporary folder.
CACHE = Path("~/.cache/poa_hf/inductor")


class CompilationUnavailable(RuntimeError):
    """Blocks cannot be compiled on this device. The message is the reason."""


class BlockCompiler:
    """Compiles the blocks of models and the losses, one function for each kind of block or loss and of input.

    Each function is compiled once, when it is first called, so that torch's limit on recompilations does not apply. A
    function that torch compiles again nevertheless, as it depends on something that is not part of its kind, is counted
    in `recompilations`.

    Args:
        expected: How many functions a run needs, for the progress messages; None if it is not known.
        backend: The compiler, as `torch.compile` takes it.
        falls_back: Whether a function that cannot be compiled runs as it is, with a warning.

    Attributes:
        compilations: Number of compilations so far.
        recompilations: Those among them that were not expected.
        seconds: Wall-clock seconds of all first calls, which include the compilation.
    """

    def __init__(self, expected: int | None = None, backend: str = "inductor", falls_back: bool = False):
        self.expected, self.backend, self.falls_back = expected, backend, falls_back
        self.compilations = self.recompilations = 0
        self.seconds = 0.0
        self._functions: dict[Hashable, Callable[..., Any]] = {}
        keep_code()

    def attach(self, model: nn.Module, blocks: list[str]) -> None:
        """Make a model's blocks run compiled.

        Args:
            model: The model.
            blocks: The names of its blocks.
        """
        for name in blocks:
            block = model.get_submodule(name)
            block.forward = functools.partial(self._call, block, block_kind(block))

    def _call(self, block: nn.Module, kind: Hashable, *args: Any, **kwargs: Any) -> Any:
        key = (kind, block.training, torch.is_grad_enabled(), *map(_kind_of_input, tree_leaves((args, kwargs))))
        return self._compiled("block", key, type(block).forward, block, *args, **kwargs)

    def function(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of tensors, compiled, once for each kind of input.

        Args:
            name: What it is called in progress messages.
            function: The function.
        """

        def call(*args: Any) -> Any:
            key = (function, torch.is_grad_enabled(), *map(_kind_of_input, tree_leaves(args)))
            return self._compiled(name, key, function, *args)

        return call

    def row_functions(self) -> RowFunctions:
        """Return the functions that losses compute of chunks of rows, compiled."""
        return RowFunctions(*(functools.partial(self._call_of_rows, function) for function in PLAIN))

    def _call_of_rows(self, function: Callable[..., Any], rows: Rows, *shared: Any) -> Any:
        if rows[0] is None or len(rows[0]) < 2:  # which the compiler takes for another kind
            return function(rows, *shared)
        kinds_of_rows = (None if tensor is None else (tensor.shape[1:], tensor.dtype, tensor.device) for tensor in rows)
        key = (function, torch.is_grad_enabled(), *kinds_of_rows, *map(_kind_of_input, shared))
        if key not in self._functions:
            # copies, as the compiler takes the places of views in their storage for parts of their kind
            rows = tuple(None if tensor is None else tensor.clone() for tensor in rows)
        for tensor in rows:
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return self._compiled("loss", key, function, rows, *shared)

    def _compiled(self, name: str, key: Hashable, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        compiled = self._functions.get(key)
        if compiled is not None:
            return compiled(*args, **kwargs)
        compiled = self._functions[key] = self._new_function(name, function)
        started = time.perf_counter()
        try:
            result = compiled(*args, **kwargs)
        except TorchDynamoException as error:
            reason = f"{name} {len(self._functions)} cannot be compiled ({one_line(error)[:200]})"
            if not self.falls_back:
                raise ValueError(
                    f"compile is blocks, but {reason}: use --compile off, or another --attn_implementation if that is "
                    "the reason."
                ) from error
            logger.warning("%s: it runs as it is, more slowly.", reason)
            self._functions[key] = function
            result = function(*args, **kwargs)
        self.seconds += time.perf_counter() - started
        return result

    def _new_function(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        number = len(self._functions) + 1
        calls = 0

        def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
            nonlocal calls
            calls += 1
            self.compilations += 1
            if calls > 1:
                self.recompilations += 1
                logger.info("Compiled %s %d is compiled again: it depends on more than its shapes.", name, number)
            else:
                logger.info("compiling %s %d%s", name, number, f" of {self.expected}" if self.expected else "")
            compiler = torch._dynamo.lookup_backend(self.backend)
            return compiler(graph, inputs)

        # torch keeps compiled code by the code object of a function, so that each function needs its own
        code = forward.__code__.replace(co_name=f"{name}_{number}")
        copied = types.FunctionType(code, forward.__globals__, code.co_name, forward.__defaults__, forward.__closure__)
        copied.__kwdefaults__ = forward.__kwdefaults__
        return torch.compile(copied, dynamic=False, backend=backend)


def block_kind(block: nn.Module) -> Hashable:
    """Return what a block's code depends on besides its input: its class, its numbers and its parameters' shapes."""
    parts: list[Hashable] = []
    for name, module in block.named_modules():
        numbers = [(key, value) for key, value in vars(module).items() if _is_plain(value) and not key.startswith("_")]
        parts.append((name, type(module), tuple(item for item in numbers if item[0] != "training")))
    parts += [(name, tuple(parameter.shape)) for name, parameter in block.named_parameters()]
    return tuple(parts)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _kind_of_input(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        device = value.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return tuple(value.shape), value.dtype, value.device, value.requires_grad, autocast
    return value if isinstance(value, Hashable) else str(type(value))


def keep_code() -> None:
    """Make the compiler keep its code in `CACHE`, so that a second run finds it, unless the user has set a folder.

    Importing the compiler sets the variable to the temporary folder, so that being set does not say that a user did.
    """
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR") in (None, os.path.abspath(default_cache_dir())):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(CACHE.expanduser())


def check_compiler(device: torch.device) -> None:
    """Compile a small function.

    Raises:
        CompilationUnavailable: If that fails, such as for want of a compiler.
    """
    keep_code()
    try:
        compiled = torch.compile(lambda values: values * 2 + 1)
        with torch.no_grad():
            compiled(torch.ones(8, device=device))
    except Exception as error:  # compilers and drivers raise whatever they like
        raise CompilationUnavailable(one_line(error).partition(". ")[0][:200]) from error
