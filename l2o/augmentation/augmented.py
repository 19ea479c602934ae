"""What augmentations share: the name of the task, its instances, and checks of ranges."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import Any, NamedTuple

import jax
import optax

from l2o.rng import key_of
from l2o.task import Batch, Data, Instance, Key, Split, Task

KINDS = (
    "reparametrized",
    "reparametrized_tensor",
    "reparametrized_parameter",
    "reduced_batch",
    "low_precision",
    "noisy_gradients",
    "normalized_gradients",
    "noisy_labels",
    "noisy_inputs",
    "scaled_loss",
    "robust",
)
"""What the names of augmented tasks end with, of `l2o.robust` as well."""


class Augmented(NamedTuple):
    """Instance of an augmented task.

    Attributes:
        instance: Instance of the task that is augmented.
        drawn: Tree of arrays that the augmentation drew.
    """

    instance: Instance
    drawn: Any


def renamed(task: Task, kind: str) -> Task:
    """Give an augmented task a name of its own, and the family of the plain one."""
    return replace(task, name=f"{task.name}_{kind}", family=task.family or task.name)


def with_drawn(task: Task, kind: str, draw: Callable[[Key], Any]) -> Task:
    """Rename a task, and add to its instances what an augmentation draws; all else is as it was.

    Args:
        task: Task that is augmented.
        kind: Augmentation, one of `KINDS`.
        draw: Function `(key) -> drawn`. The key derives from the new name: the instance that the
            task draws is the one that it draws alone, and two augmentations draw apart.
    """
    task_all_rows = task.all_rows
    augmented = renamed(task, kind)

    def sample(key: Key) -> Augmented:
        return Augmented(task.sample(key), draw(key_of(key, augmented.name)))

    def batch(key: Key, instance: Augmented, data: Data, split: Split) -> Batch:
        return task.batch(key, instance.instance, data, split)

    def all_rows(instance: Augmented, data: Data, split: Split) -> Batch:
        assert task_all_rows is not None
        return task_all_rows(instance.instance, data, split)

    return replace(
        augmented,
        sample=sample,
        init=lambda key, instance: task.init(key, instance.instance),
        batch=batch,
        loss=lambda params, batch, instance: task.loss(params, batch, instance.instance),
        metrics=lambda params, batch, instance: task.metrics(params, batch, instance.instance),
        all_rows=task_all_rows and all_rows,
    )


def params_of(task: Task) -> optax.Params:
    """Shapes and dtypes of a task's parameters, by abstract evaluation."""
    return jax.eval_shape(lambda key: task.init(key, task.sample(key)), jax.random.key(0))


def plain_name(name: str) -> str:
    """Name of the task that was augmented; a letter after what was done tells settings apart.

    >>> plain_name("digits_mlp_32_varied_reparametrized_noisy_gradients")
    'digits_mlp_32_varied'
    >>> plain_name("quadratic_2_reparametrized_b")
    'quadratic_2'
    """
    return re.sub(f"(_({'|'.join(KINDS)})(_[a-z])?)+$", "", name)


def check_is_task(task: Task, augment: Callable[..., object]) -> None:
    """Raise a `ValueError` that says what to type unless a task, and not a family, is augmented."""
    if not isinstance(task, Task):
        given = getattr(task, "name", task)
        raise ValueError(
            f"`task` must be a Task; got {type(task).__name__} {given}. "
            f"Try [l2o.{augment.__name__}(t) for t in family.train] of a family."
        )


def check_numbers(**values: Any) -> None:
    """Raise a `ValueError` that says what to type unless arguments are numbers."""
    for name, value in values.items():
        if not isinstance(value, Real):
            raise ValueError(f"`{name}` must be a number; got {value!r}. Try {name}=0.1.")


def check_range(low: float, high: float, tried: tuple[float, float], *, above: bool = True) -> None:
    """Raise a `ValueError` that says what to type unless `low` and `high` are a range.

    Args:
        low: Smallest number.
        high: Largest number, at most 1 if the range to try is.
        tried: Range to suggest.
        above: Whether `low` must be above 0 and not only at least 0.
    """
    check_numbers(low=low, high=high)
    most = 1.0 if tried[1] <= 1.0 else math.inf
    is_low = low > 0 if above else low >= 0
    if not (is_low and low <= high <= most and high < math.inf):
        least = "above 0" if above else "at least 0"
        limit = " and at most 1" if most == 1.0 else ""
        raise ValueError(
            f"`low` and `high` must be a range of numbers {least}{limit}; got low={low}, "
            f"high={high}. Try low={tried[0]:g}, high={tried[1]:g}."
        )
