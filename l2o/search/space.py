"""What a search varies: settings by name, each with a range or a list of values.

    learning_rate=0.001:0.1     a range; by its logarithm where both ends are positive
    shaping=none,sign           a list
    std                         what is usual: a tenth to ten times the setting as it is

A setting that has some values alone, such as `window`, which must divide the horizon, takes those
of them that are in the range, usually a quarter to four times; one of names takes all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from l2o.registry import unknown_name_error

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = float | int | str
"""Value of a setting."""


class Known(NamedTuple):
    """A setting that can be searched over.

    Attributes:
        default: Value if it is not searched over; None if it is then not set.
        kind: Type of its values: float, int or str.
        choices: Values that it can have; () if it can have any number.
    """

    default: Value | None
    kind: type[float] | type[int] | type[str]
    choices: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Setting:
    """A setting that is searched over.

    Attributes:
        name: Name of the setting.
        values: Lowest and highest value of a range; or all values of a list.
        is_range: Whether it is a range.
    """

    name: str
    values: tuple[Value, ...]
    is_range: bool

    @property
    def distribution(self) -> "BaseDistribution":
        """What Optuna's samplers draw from."""
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if not self.is_range:
            return CategoricalDistribution(self.values)
        low, high = self.values
        assert not isinstance(low, str) and not isinstance(high, str)
        is_log = low > 0
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=is_log)
        return FloatDistribution(low, high, log=is_log)

    def holds(self, value: Value | None) -> bool:
        """Whether a value is in the range or the list."""
        if not self.is_range or value is None or isinstance(value, str):
            return value in self.values
        low, high = self.values
        assert not isinstance(low, str) and not isinstance(high, str)
        return low <= value <= high


def parse_space(words: Sequence[str], known: Mapping[str, Known]) -> tuple[Setting, ...]:
    """Parse the settings that are searched over.

    >>> known = {"std": Known(0.01, float), "window": Known(50, int, (10, 20, 50, 100, 200))}
    >>> [setting.values for setting in parse_space(["std", "window=20:100"], known)]
    [(0.001, 0.1), (20, 50, 100)]

    Args:
        words: Names of settings, each alone or followed by =LOW:HIGH or by =VALUE,VALUE...
        known: Settings that can be searched over, by name.

    Raises:
        ValueError: If there are none, one is unknown or named twice, or its range is empty or
            holds what the setting cannot be.
    """
    if not words:
        raise ValueError("`over` must name settings; got none. Try --over learning_rate std.")
    found: dict[str, Setting] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.replace("-", "_")
        if name not in known:
            raise unknown_name_error("over", name, known)
        if name in found:
            raise ValueError(f"`over` must name a setting once; got {name} twice. Drop one.")
        found[name] = _parsed(name, text, known[name]) if equals else _usual(name, known[name])
    return tuple(found.values())


def _parsed(name: str, text: str, known: Known) -> Setting:
    is_range = ":" in text and known.kind is not str
    values = tuple(_value(name, part, known) for part in text.split(":" if is_range else ","))
    if not is_range:
        for value in values:
            if known.choices and value not in known.choices:
                raise ValueError(
                    f"`over` {name} must be among {_shown(known.choices)}; got {value}. Drop it."
                )
        if len(set(values)) < max(2, len(values)):
            raise ValueError(
                f"`over` {name} must have two values that differ, or more; got {text or 'none'}. "
                f"Try {_example(name, known)}."
            )
        return Setting(name, values, is_range=False)
    if len(values) != 2 or not values[0] < values[1]:  # pyright: ignore[reportOperatorIssue]
        raise ValueError(
            f"`over` {name} must be a range from a lower to a higher number; got {text}. "
            f"Try {_example(name, known)}."
        )
    return _among(name, values, known) if known.choices else Setting(name, values, is_range=True)


def _usual(name: str, known: Known) -> Setting:
    """What a setting is searched over if only its name is given."""
    if known.kind is str:
        return Setting(name, known.choices, is_range=False)
    value = known.default
    if not isinstance(value, float | int) or value <= 0:
        raise ValueError(
            f"`over` {name} needs a range, as it is {'not set' if value is None else value}; got "
            f"its name alone. Try {_example(name, known)}."
        )
    if known.choices:
        return _among(name, (value / 4, value * 4), known)
    low, high = (float(f"{end:.3g}") for end in (value / 10, value * 10))
    if known.kind is int:
        return Setting(name, (max(1, round(low)), round(high)), is_range=True)
    return Setting(name, (low, high), is_range=True)


def _among(name: str, ends: Sequence[Value], known: Known) -> Setting:
    """Those of the values that a setting can have that are in a range."""
    low, high = ends
    values = tuple(v for v in known.choices if low <= v <= high)  # pyright: ignore[reportOperatorIssue]
    if len(values) < 2:
        raise ValueError(
            f"`over` {name} must hold two of {_shown(known.choices)}, or more; got "
            f"{low:g}:{high:g}. Try {_example(name, known)}."
        )
    return Setting(name, values, is_range=False)


def _value(name: str, text: str, known: Known) -> Value:
    if known.kind is str:
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (known.kind is int and number != int(number)):
        what = "whole numbers" if known.kind is int else "finite numbers"
        raise ValueError(
            f"`over` {name} must be of {what}; got {text or 'nothing'}. "
            f"Try {_example(name, known)}."
        )
    return known.kind(number)


def _example(name: str, known: Known) -> str:
    """A range or a list that can be typed."""
    if known.choices:
        return f"{name}={','.join(str(choice) for choice in known.choices)}"
    value = known.default
    if not isinstance(value, float | int) or value <= 0:
        return f"{name}=1:10" if known.kind is int else f"{name}=0.001:0.1"
    if known.kind is int:
        return f"{name}={max(1, round(value / 2))}:{round(value * 2)}"
    return f"{name}={value / 10:.3g}:{value * 10:.3g}"


def _shown(values: Sequence[Value]) -> str:
    return ", ".join(str(value) for value in values)
