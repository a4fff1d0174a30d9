"""The functions of a step by the part of the step that they belong to, for timed_step.py and launches.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from poa_hf import PoaForPreTraining
from poa_hf.objective import objective
from poa_hf.objective.branches import Branch
from poa_hf.objective.early_gradients import GradientSums
from poa_hf.objective.head_losses import TeacherTargets


@contextmanager
def step_parts(model: PoaForPreTraining, wrap: Callable[[Callable, str], Callable]) -> Iterator[None]:
    """Within the context, wrap the functions of the forward pass by the part of the step that they belong to.

    Args:
        model: The model whose forward pass is taken apart.
        wrap: Returns a function in place of one of a part. The parts are "teacher", "intact", "elastic" and "heads and
            losses"; those of the students include their backward passes.
    """
    branches, branch = iter(["teacher", "intact", "elastic"]), [""]

    def of_branch(function: Callable) -> Callable:
        return lambda *args, **kwargs: wrap(function, branch[0])(*args, **kwargs)

    def first_tokens(function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            branch[0] = next(branches)
            return of_branch(function)(*args, **kwargs)

        return call

    @contextmanager
    def wrapped_end(context: Any, part: str | None = None) -> Iterator[Any]:
        """Wrap the end of a context: the backward pass of what it was entered with."""
        with ExitStack() as stack:
            value = stack.enter_context(context)
            yield value
            del value
            wrap(stack.close, part or branch[0])()

    cut, prototypes = GradientSums.cut, objective.student_prototypes
    sliced = model.student.sliced
    heads = "heads and losses"
    replaced = [
        (Branch, "global_tokens", first_tokens(Branch.global_tokens)),
        (Branch, "local_tokens", of_branch(Branch.local_tokens)),
        (Branch, "all_tokens", first_tokens(Branch.all_tokens)),
        (model.student, "sliced", lambda size, *args: wrap(sliced, "elastic" if size else "intact")(size, *args)),
        (model.teacher, "sliced", wrap(model.teacher.sliced, "teacher")),
        (GradientSums, "cut", lambda *args: wrapped_end(cut(*args))),
        (GradientSums, "on_leaves", wrap(GradientSums.on_leaves, "elastic")),
        (GradientSums, "totals", wrap(GradientSums.totals, "elastic")),
        (TeacherTargets, "__init__", wrap(TeacherTargets.__init__, heads)),
        (objective, "head_losses", wrap(objective.head_losses, heads)),
        (objective, "student_prototypes", lambda *args: wrapped_end(prototypes(*args), heads)),
    ]
    with ExitStack() as stack:
        for owner, name, function in replaced:
            stack.enter_context(patch.object(owner, name, function))
        yield
