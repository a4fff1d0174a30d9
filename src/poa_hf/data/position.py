"""The position in the data, as plain JSON: what a run that goes on needs to know, and what must not have changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .order import BatchPlan
from .rows import StreamedImages


def saved_position(plan: BatchPlan, batch: int, lane_states: Mapping[str, dict]) -> dict[str, Any]:
    """Return the position before a batch, as `PretrainingLoader.state_dict` does.

    Args:
        plan: Which rows the batches hold.
        batch: The number of the batch.
        lane_states: The positions of a stream's lanes by name.
    """
    state: dict[str, Any] = {"batch": batch, "seed": plan.seed, "global_batch_size": plan.global_batch_size}
    if plan.datasets:
        state |= {"counts": list(plan.counts), "datasets": [_data_state(part) for part in plan.datasets]}
    else:
        state |= _data_state(plan)
    return state | {"lanes": dict(lane_states)} if plan.streams else state


def at_position(plan: BatchPlan, states: Sequence[dict[str, Any]]) -> tuple[BatchPlan, int, dict[str, dict]]:
    """Return the plan, the number of the next batch and the positions of lanes with which a saved run goes on.

    Args:
        plan: Which rows the batches of this run hold.
        states: The saved positions of all processes.

    Raises:
        ValueError: If the states belong to other data or another seed, end within a global batch of this run's size,
            or lack a lane that this process reads.
    """
    if not states:
        raise ValueError("There is no saved position of the data: give the states of all processes.")
    first = states[0]
    if any(state["batch"] != first["batch"] for state in states):
        raise ValueError("The saved positions of the processes differ: give states saved at the same step.")
    _check_same_data(plan, first)
    batch = _batches_read(plan, first)
    if plan.datasets:
        parts = zip(plan.datasets, first["datasets"], strict=True)
        plan = dataclasses.replace(plan, datasets=tuple(_as_saved(part, state) for part, state in parts))
    else:
        plan = _as_saved(plan, first)
    return plan, batch, _saved_lanes(plan, batch, states) if plan.streams else {}


def _check_same_data(plan: BatchPlan, state: dict[str, Any]) -> None:
    saved: list[dict[str, Any]] = state.get("datasets") or [state]
    shares = state.get("counts", [1])
    _check_same("seed", state.get("seed"), plan.seed)
    _check_same("number of datasets", len(saved), len(plan.parts))
    if plan.datasets:
        _check_same("shares of datasets", _percent(shares), _percent(plan.counts))
    for part, data in zip(plan.parts, saved, strict=True):
        name = "num_shards" if isinstance(part.images, StreamedImages) else "num_images"
        of = f" of {part.name.rstrip('/')}" if part.name else ""
        _check_same(name + of, data.get(name), _data_state(part)[name])


def _batches_read(plan: BatchPlan, state: dict[str, Any]) -> int:
    """Return how many of this run's global batches hold the images that the saving run has read.

    With batches of another size (more accumulation, fewer processes) the order of the images stays the same.
    """
    num_images, size = state["batch"] * state["global_batch_size"], plan.global_batch_size
    batch, rest = divmod(num_images, size)
    if rest:
        raise ValueError(
            f"{num_images} images have been read, which is no whole number of global batches of {size}: resume "
            "with batches of the same size, or start anew."
        )
    return batch


def _data_state(plan: BatchPlan) -> dict[str, Any]:
    """Return what a state says of one dataset: its size, and how it is read."""
    if isinstance(plan.images, StreamedImages):
        lanes = {"num_slots": plan.num_slots, "num_lanes": plan.num_lanes, "block_size": plan.block_size}
        return {"num_shards": plan.images.num_shards, **lanes}
    assert plan.images is not None
    return {"num_images": len(plan.images)}


def _as_saved(plan: BatchPlan, state: dict[str, Any]) -> BatchPlan:
    """Return a plan with the lanes of the saving run: one of version 0.1 may have more slots than one."""
    if not isinstance(plan.images, StreamedImages):
        return plan
    return dataclasses.replace(plan, **{name: state[name] for name in ("num_slots", "num_lanes", "block_size")})


def _check_same(name: str, saved: Any, now: Any) -> None:
    if saved != now:
        raise ValueError(
            f"The saved position of the data has {name} {saved}, this run {now}: resume with the same data and seed, "
            "or start anew."
        )


def _percent(counts: Sequence[int]) -> str:
    return ", ".join(f"{100 * count / sum(counts):g} %" for count in counts)


def _saved_lanes(plan: BatchPlan, batch: int, states: Sequence[dict[str, Any]]) -> dict[str, dict]:
    """Return the saved states of those lanes of this process that the first `batch` batches were taken from."""
    saved = {lane: state for process in states for lane, state in process["lanes"].items()}
    needed = [
        part.lane_name(lane)
        for part in plan.streams
        for slot in range(min(batch, part.num_slots))
        for lane in part.lanes_of_slot(slot)
    ]
    if missing := [lane for lane in needed if lane not in saved]:
        raise ValueError(f"The saved position lacks lane {missing[0]}: give the states of all processes that saved it.")
    return {lane: saved[lane] for lane in needed}
