"""A task of a suite: what is trained, for how long, and when it counts as solved."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral

from l2o.registry import unknown_name_error
from l2o.task import Task


@dataclass(frozen=True)
class SuiteTask:
    """A task of a suite.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> entry = l2o.SuiteTask(
    ...     "quadratic", lambda: rotated_quadratic(5), kind="function", horizon=100, solved=1e-3
    ... )
    >>> entry.make().name
    'quadratic_5'

    Attributes:
        name: Name in reports; a suite has each once.
        make: Function `() -> Task`, called when the task is run, so that a suite can be listed
            without data.
        kind: Kind of model, such as "conv", by which reports group tasks.
        horizon: Inner steps of each run.
        solved: Training or validation loss, positive, at or below which a run has solved the task:
            losses below are equal.
        axis: What is beyond usual meta-training, such as "8 times as wide"; empty if nothing is.
        dataset: Name of the data that `l2o data fetch` must have put into the local folder; empty
            if there is nothing to fetch.
        is_quick: Whether the task belongs to the part of the suite that takes minutes.

    Raises:
        ValueError: If `name` is none of a file, `make` is no function, `horizon` no whole number
            above 0, or `solved` not positive and finite.
    """

    name: str
    make: Callable[[], Task]
    kind: str
    horizon: int
    solved: float
    axis: str = ""
    dataset: str = ""
    is_quick: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ValueError(
                "`name` of a suite task must be of letters, digits and _ . + -, as files are "
                f"called by it; got {self.name!r}. Try name='my_task'."
            )
        if not callable(self.make):
            raise ValueError(
                f"`make` of suite task {self.name} must be a function that makes the task; got "
                f"{type(self.make).__name__}. Try lambda: my_task()."
            )
        if not isinstance(self.horizon, Integral) or self.horizon < 1:
            raise ValueError(
                f"`horizon` of suite task {self.name} must be a whole number above 0; got "
                f"{self.horizon!r}. Try horizon=200."
            )
        if not 0 < self.solved < math.inf:
            raise ValueError(
                f"`solved` of suite task {self.name} must be positive and finite; got "
                f"{self.solved}. Try solved=0.01."
            )


def check_names(suite: Sequence[SuiteTask]) -> None:
    """Raise a `ValueError` if two tasks of a suite have one name."""
    names = [entry.name for entry in suite]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"`suite` must have tasks of different names; got {repeated[0]} twice. Rename one."
        )


def selected(suite: Sequence[SuiteTask], names: Sequence[str]) -> tuple[SuiteTask, ...]:
    """The tasks of these names, in the order of the suite; all without any.

    Raises:
        ValueError: If a name is not among them, with the nearest ones.
    """
    known = {entry.name: entry for entry in suite}
    for name in names:
        if name not in known:
            raise unknown_name_error("tasks", name, known)
    return tuple(entry for entry in suite if not names or entry.name in names)
