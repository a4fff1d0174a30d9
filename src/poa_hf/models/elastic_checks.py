"""What the elastic configurations refuse alike: one sentence each, with what to do."""

from collections.abc import Sequence


def check_positive(config, *names: str) -> None:
    """Each of these fields, and each entry of a list, is at least 1."""
    for name in names:
        value = getattr(config, name)
        if min(value if isinstance(value, list | tuple) else [value], default=0) < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")


def check_range(config, **ranges: tuple[float, float]) -> None:
    """Each field lies in `[low, high)`."""
    for name, (low, high) in ranges.items():
        if not low <= getattr(config, name) < high:
            raise ValueError(f"{name} must be at least {low} and below {high}, not {getattr(config, name)}.")


def check_width(width: int, name: str, unit: int, what: str, full: int | None = None, step: int | None = None) -> None:
    """`width` is a positive multiple of `unit`, which is `what`; and steps lead from it to the full one."""
    if width < 1 or width % unit:
        raise ValueError(f"{name} {width} is not a positive multiple of {unit} ({what}).")
    if full is None:
        return
    full_name = name.removeprefix("min_")
    if width > full:
        raise ValueError(f"{name} {width} is larger than {full_name} {full}: the smallest size cannot be.")
    if (full - width) % step:
        raise ValueError(f"Steps of {step} ({full_name}_step) do not lead from {name} {width} to {full_name} {full}.")


def check_depths(min_depths: Sequence[int], depths: Sequence[int]) -> list[int]:
    """The fewest blocks of each stage as a list, none below 1 or above `depths`."""
    if len(min_depths) != len(depths):
        raise ValueError(f"min_depths {list(min_depths)} must have as many stages as depths {list(depths)}.")
    for stage, (fewest, full) in enumerate(zip(min_depths, depths, strict=True)):
        if not 1 <= fewest <= full:
            raise ValueError(f"min_depths of stage {stage + 1} is {fewest}: it must lie between 1 and depths' {full}.")
    return list(min_depths)
