"""Settings of meta-training that can be searched over, and settings with other values of them."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from l2o.cli.settings import MetaTraining
from l2o.search.space import Known, Value


def searchable(settings: MetaTraining) -> dict[str, Known]:
    """Settings that can be searched over, by the name of their flag without its dashes."""
    found = {}
    for name, path in paths(settings).items():
        *groups, field = path
        owner: Any = functools.reduce(getattr, groups, settings)
        hint, default = get_type_hints(type(owner))[field], getattr(owner, field)
        kinds = get_args(hint) or (hint,)
        if name == "window":
            ends = settings.horizon
            fitting = (w for w in range(1, ends[0] + 1) if all(end % w == 0 for end in ends))
            # A whole run at once is for some methods alone.
            windows = tuple(w for w in fitting if w < ends[-1] or w == default)
            found[name] = Known(default, int, windows)
        elif get_origin(hint) is Literal:
            found[name] = Known(default, str, kinds)
        elif float in kinds or int in kinds:
            found[name] = Known(default, float if float in kinds else int)
    return found


def paths(settings: MetaTraining) -> dict[str, tuple[str, ...]]:
    """Where each setting of the method is among the settings, and two of the run, by its flag."""
    found: dict[str, tuple[str, ...]] = {"window": ("window",), "ema_decay": ("ema_decay",)}

    def add(owner: Any, path: tuple[str, ...], prefix: str) -> None:
        hints = get_type_hints(type(owner), include_extras=True)
        for field in dataclasses.fields(owner):
            value, here = getattr(owner, field.name), (*path, field.name)
            if dataclasses.is_dataclass(value):
                is_flat = hasattr(hints[field.name], "__metadata__")
                add(value, here, prefix if is_flat else f"{prefix}{field.name}.")
            else:
                found[prefix + field.name] = here

    add(settings.method, ("method",), "")
    return found


def with_values(settings: MetaTraining, values: Mapping[str, Value]) -> MetaTraining:
    """Settings with other values of those that are searched over."""

    def replaced(owner: Any, path: Sequence[str], value: Value) -> Any:
        name, *rest = path
        new = replaced(getattr(owner, name), rest, value) if rest else value
        return dataclasses.replace(owner, **{name: new})

    where = paths(settings)
    for name, value in values.items():
        settings = replaced(settings, where[name], value)
    return settings
