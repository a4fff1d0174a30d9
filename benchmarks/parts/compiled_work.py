"""What the blocks and losses of a step launch and move when they are compiled, for launches.py --compile."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._inductor import metrics
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map_only

from poa_hf.models.compiled_blocks import BlockCompiler

from .launches import Launches, Work, fake_step

# Calls in generated code: of generated functions, and of products, attention and the like, which are PyTorch's.
_FUNCTION_CALL = re.compile(r"^\s+cpp_fused\w*\(", re.MULTILINE)
_LIBRARY_CALL = re.compile(r"^\s+(?:\w+ = )?(?:extern_kernels|torch\.ops\.\w+)\.[\w.]+\(", re.MULTILINE)
# Numbers of images or rows at which calls are measured: what they move is linear in them. Stochastic depth keeps whole
# images of both numbers for drop rates of whole fifths.
_FEW, _MORE = 5, 10


@dataclass
class Kind:
    """A kind of block or loss with its input, as a step calls it.

    Attributes:
        function: What is computed.
        tensors: The tensors of the block, by name, which stand in for its own.
        args: The arguments, of which the first is the block where there is one.
        kwargs: The arguments by name.
        calls: How often a step calls it.
        rows: Images or rows of all calls.
    """

    function: Callable[..., Any]
    tensors: dict[str, Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    calls: int = 0
    rows: int = 0

    @property
    def block(self) -> nn.Module | None:
        """The block that is computed, if it is one."""
        return next((each for each in self.args if isinstance(each, nn.Module)), None)

    @property
    def learns(self) -> bool:
        """Whether gradients of a call are asked for."""
        given = [*self.tensors.values(), *tree_leaves((self.args, self.kwargs))]
        return any(isinstance(each, Tensor) and each.requires_grad for each in given)

    def filled(self, number: int) -> Kind:
        """Return the same kind with new tensors, for a number of images or rows."""
        recorded = _length(self.args, self.kwargs)

        def made(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
            return torch.ones(shape, dtype=tensor.dtype).requires_grad_(tensor.requires_grad)

        def made_of_rows(tensor: Tensor) -> Tensor:
            has_rows = tensor.ndim > 0 and len(tensor) == recorded
            return made(tensor, (number, *tensor.shape[1:]) if has_rows else tuple(tensor.shape))

        tensors = {name: made(each, tuple(each.shape)) for name, each in self.tensors.items()}
        args, kwargs = tree_map_only(Tensor, made_of_rows, (self.args, self.kwargs))
        return replace(self, tensors=tensors, args=args, kwargs=kwargs)

    def compute(self, function: Callable[..., Any]) -> None:
        """Compute forward and, where something is learned, backward.

        Args:
            function: What is called in place of `function`.
        """
        with torch.set_grad_enabled(self.learns):
            if self.block is None:
                result = function(*self.args, **self.kwargs)
            else:
                called = _Called(self.block, function)
                result = functional_call(called, self.tensors, self.args[1:], self.kwargs, tie_weights=False)
        outputs = [each for each in tree_leaves(result) if isinstance(each, Tensor) and each.requires_grad]
        given = [*self.tensors.values(), *tree_leaves((self.args, self.kwargs))]
        learned = [each for each in given if isinstance(each, Tensor) and each.requires_grad]
        if outputs:
            torch.autograd.grad(outputs, learned, [torch.empty_like(each) for each in outputs], allow_unused=True)

    def __str__(self) -> str:
        tensors = [each for each in tree_leaves((self.args, self.kwargs)) if isinstance(each, Tensor)]
        if self.block is None:
            width = max(tensor.shape[-1] for tensor in tensors if tensor.ndim)
            return f"{self.function.__name__} of {len(tensors)} tensors, {width:,} prototypes"
        shape = "x".join(map(str, tensors[0].shape))
        return f"{type(self.block).__name__} {shape}{'' if self.learns else ', forward only'}"


def _length(args: Any, kwargs: Any) -> int:
    """Return the number of images or rows of an input."""
    return len(next(each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)))


class _Called(nn.Module):
    """A function of a block as a module, which `functional_call` can run on other tensors."""

    def __init__(self, block: nn.Module, function: Callable[..., Any]):
        super().__init__()
        self.block, self.function = block, function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.block, *args, **kwargs)


class Recorder(BlockCompiler):
    """Compiles nothing, and records with what each kind of block and loss is called.

    Rows of losses are copied at each call, as for a compiler: the launches of the same step are not to be counted.

    Attributes:
        kinds: The kinds of blocks and losses, in the order of their first calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[Hashable, Kind] = {}

    def _compiled(self, name: str, key: Hashable, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if key not in self.kinds:
            block = args[0] if isinstance(args[0], nn.Module) else nn.Module()
            tensors = {f"block.{each}": tensor for each, tensor in block.named_parameters()}
            self.kinds[key] = Kind(function, tensors, args, kwargs)
        self.kinds[key].calls += 1
        self.kinds[key].rows += _length(args, kwargs)
        return function(*args, **kwargs)


def plain_work(kind: Kind, bf16: bool) -> Work:
    """Return what all calls of a kind launch and move in a step as they are, forward and backward."""

    def measured(number: int) -> Work:
        with fake_step():
            filled = kind.filled(number)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16), Launches() as launches:
                filled.compute(kind.function)
        return launches.work

    return _of_step(kind, measured)


def compiled_work(kind: Kind, bf16: bool) -> Work:
    """Return what all calls of a kind launch and move in a step when they are compiled for a CPU, forward and backward.

    `operations` counts calls of PyTorch's own operations ("library"), of generated functions ("functions") and the
    loops in them ("loops"). A function may hold loops that are not related, which a GPU's compiler keeps apart; it may
    also split a loop that sums over many rows. So neither number is a bound for a GPU.
    """

    def measured(number: int) -> Work:
        work = Work()

        def save(code: str) -> None:
            called = code[code.index("def call(") :]
            work.operations["library"] += len(_LIBRARY_CALL.findall(called))
            work.operations["functions"] += len(_FUNCTION_CALL.findall(called))
            work.bytes += V.graph.count_bytes()[0]

        compiler = BlockCompiler()
        function = compiler.function("loss", kind.function) if kind.block is None else _of_block(compiler, kind)
        with _counting(save), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            metrics.reset()
            kind.filled(number).compute(function)
        work.operations["loops"] += metrics.generated_kernel_count
        return work

    return _of_step(kind, measured)


def _of_step(kind: Kind, measured: Callable[[int], Work]) -> Work:
    """Return the work of all calls of a kind, given what measures a call for a number of images or rows."""
    few, more = measured(_FEW), measured(_MORE)
    of_a_row = (more.bytes - few.bytes) / (_MORE - _FEW)
    moved = kind.calls * few.bytes + of_a_row * (kind.rows - kind.calls * _FEW)
    return Work(Counter({name: kind.calls * count for name, count in few.operations.items()}), round(moved))


def _of_block(compiler: BlockCompiler, kind: Kind) -> Callable[..., Any]:
    return lambda block, *args, **kwargs: compiler._compiled("block", id(kind), kind.function, block, *args, **kwargs)


@contextmanager
def _counting(save: Callable[[str], None]) -> Iterator[None]:
    """Within the context, everything is compiled anew, and what is generated is given to a function."""
    with torch._inductor.config.patch(force_disable_caches=True), patch.object(GraphLowering, "save_output_code", save):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
            yield
