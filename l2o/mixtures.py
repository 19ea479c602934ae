"""Mixtures: tasks and families to meta-train on side by side, with weights.

Every task of a mixture is a compiled program of its own, so their number is bounded, and what is
drawn is drawn once, when the mixture is made. Weights of parts are no chances of being drawn: each
part has its weight in the meta-gradient whatever the number of its tasks,
    weight of a task = weight of its part / sum of weights · share of the part's tasks.
Where fewer tasks of a family are drawn than it has, the share of each is its weight in expectation.
"""

import inspect
import math
from collections import Counter
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import TypeVar

import jax
import numpy as np

from l2o.registry import TASKS, import_by_path, task_family
from l2o.rng import check_seed, key_of
from l2o.task import Key, Task, TaskFamily

Draw = Callable[[Key], Task]
"""Function that draws a task, an architecture for instance; called outside of `jit`."""

Part = TypeVar("Part", bound=str | Task | TaskFamily | Draw)


def mixture(
    parts: Mapping[Part, float],
    *,
    num_tasks: int | None = None,
    seed: int = 0,
    name: str = "mixture",
) -> TaskFamily:
    """Mix tasks and families with weights, and architectures drawn from a space.

    A family counts as a whole, however many variants it has, and so does a function that draws
    tasks. With `num_tasks`, every part has at least one and the rest go to the parts with the
    largest weight for a task. If a family has more tasks than that, they are drawn by systematic
    sampling: in proportion to their weights in the family, and of equal ones none twice. A task
    that is drawn several times, by name, is one with a weight for each time.

    Losses of different tasks are comparable with `Objective(normalize=True)`, which divides by
    `Task.loss_scale`, or `Objective(summary="log")`.

    >>> import jax
    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> def some_quadratic(key):
    ...     return rotated_quadratic(int(l2o.log_uniform(key, 2, 33)))
    >>> mixed = l2o.mixture({"digits_mlp": 2.0, some_quadratic: 1.0}, num_tasks=4, seed=1)
    >>> for task, weight in mixed.task_weights().items():
    ...     print(f"{task}: {weight:.3f}")
    digits_mlp_32_varied: 0.222
    digits_mlp_32x32_varied: 0.222
    digits_mlp_64x32_varied: 0.222
    quadratic_2: 0.333

    Args:
        parts: Weight of each part, positive: a task; a family; the name of either, as at the
            command line; or a function `(key) -> Task` whose tasks have the same name if and only
            if they are alike.
        num_tasks: Number of tasks at most, each a program to compile; all tasks of all parts if
            None, which a function that draws does not allow.
        seed: Seed of what is drawn.
        name: Name of the family that is made.

    Returns:
        A family of the tasks with `weights` that sum to 1, whose evaluation tasks are those of the
        families that were mixed and are not in `train`. An architecture that is drawn may be that
        of an evaluation task, which then counts as seen.

    Raises:
        ValueError: If there are no parts, two have one name, one is nothing to train on, a weight
            is not positive, `num_tasks` is missing or less than the number of parts, or tasks of
            one name differ.
    """
    _check_types(parts, num_tasks, seed)
    check_seed(seed)
    sources: dict[str, TaskFamily | Draw] = {}
    weights: dict[str, float] = {}
    for part, weight in parts.items():
        label, source = _source(part)
        if label in sources:
            raise ValueError(
                f"`parts` must have names of their own; got {label} twice. Drop one, or try "
                f'dataclasses.replace(part, name="{label}_b").'
            )
        sources[label], weights[label] = source, weight
    if not sources or not all(
        isinstance(weight, Real) and 0 < weight < math.inf for weight in weights.values()
    ):
        raise ValueError(
            f"`parts` must have positive, finite weights, at least one; got {weights}. "
            'Try {"digits_mlp": 1.0}.'
        )
    families = [source for source in sources.values() if isinstance(source, TaskFamily)]
    counts = _counts(sources, weights, num_tasks)
    key = jax.random.key(seed)
    shares: dict[str, float] = {}
    tasks: dict[str, Task] = {}
    for label, source in sources.items():
        k_part = key_of(key, label)
        if isinstance(source, TaskFamily):
            drawn = _subset(k_part, source, counts[label])
        else:
            drawn = _drawn(k_part, label, source, counts[label])
        whole = sum(share for _, share in drawn)
        for task, share in drawn:
            if task.name in tasks:
                again = "" if len(families) == len(sources) else f", or seed={seed + 1}"
                raise ValueError(
                    f"`parts` must have tasks that differ; got {task.name} in two. Drop one, or "
                    f'try dataclasses.replace(task, name="{task.name}_b"){again}.'
                )
            tasks[task.name] = task
            shares[task.name] = weights[label] / sum(weights.values()) * share / whole
    evaluation: dict[str, Task] = {}
    for task in (task for family in families for task in family.evaluation):
        if evaluation.setdefault(task.name, task) is not task:
            raise ValueError(
                f"`parts` must have evaluation tasks that differ; got {task.name} in two families. "
                "Try dataclasses.replace(family, evaluation=()) for one of them."
            )
    return TaskFamily(
        name=name,
        train=tuple(tasks.values()),
        evaluation=tuple(task for task in evaluation.values() if task.name not in tasks),
        weights=tuple(shares.values()),
    )


def _source(part: str | Task | TaskFamily | Draw) -> tuple[str, TaskFamily | Draw]:
    """The name of a part, and the family or the function that it is."""
    if isinstance(part, str):
        label, source = part, _family_by_name(part)
    elif isinstance(part, Task):
        label, source = part.name, TaskFamily(name=part.name, train=(part,), evaluation=())
    elif isinstance(part, TaskFamily):
        label, source = part.name, part
    elif callable(part) and not isinstance(part, type):
        return getattr(part, "__name__", type(part).__name__), part
    else:
        raise ValueError(
            "`parts` must be tasks, families, their names or functions that draw tasks; got "
            f'{type(part).__name__} {getattr(part, "name", part)}. Try {{"digits_mlp": 1.0}}.'
        )
    if not source.train:
        raise ValueError(
            f"`parts` must have families with tasks to train on; got {label}, whose `train` is "
            "empty. Drop it."
        )
    return label, source


def _family_by_name(name: str) -> TaskFamily:
    """The family at a name or path, which must not be a function that draws."""
    found = import_by_path("parts", name, TASKS) if ":" in name else None
    if callable(found):
        try:
            inspect.signature(found).bind()
        except (TypeError, ValueError) as error:
            raise ValueError(
                "`parts` must have a function that draws tasks itself and not its path; got "
                f"{name}. Import it and try {{{name.partition(':')[2]}: 1.0}}."
            ) from error
    return task_family(name)


def _check_types(parts: Mapping[Part, float], num_tasks: int | None, seed: int) -> None:
    """Raise a `ValueError` that says what to type unless arguments have their types."""
    if not isinstance(parts, Mapping):
        raise ValueError(
            f"`parts` must be a mapping from parts to weights; got {type(parts).__name__}. "
            'Try {"digits_mlp": 1.0}.'
        )
    for name, value, tried in (("num_tasks", num_tasks or 1, 8), ("seed", seed, 0)):
        if not isinstance(value, Integral):
            raise ValueError(f"`{name}` must be an integer; got {value!r}. Try {name}={tried}.")


def _counts(
    sources: Mapping[str, TaskFamily | Draw], weights: Mapping[str, float], num_tasks: int | None
) -> dict[str, int]:
    """Number of tasks of each part, at least one."""
    most = {
        label: len(source.train) if isinstance(source, TaskFamily) else math.inf
        for label, source in sources.items()
    }
    unlimited = [label for label, number in most.items() if math.isinf(number)]
    if num_tasks is None:
        if unlimited:
            raise ValueError(
                f"`num_tasks` must be given with a function that draws, {unlimited[0]}; got None. "
                f"Try num_tasks={4 * len(sources)}."
            )
        return {label: int(number) for label, number in most.items()}
    if num_tasks < len(sources):
        raise ValueError(
            f"`num_tasks` must be at least the number of parts, {len(sources)}; got {num_tasks}. "
            f"Try num_tasks={4 * len(sources)}."
        )
    counts = dict.fromkeys(sources, 1)
    while sum(counts.values()) < num_tasks:
        free = [label for label in sources if counts[label] < most[label]]
        if not free:
            break
        counts[max(free, key=lambda label: weights[label] / counts[label])] += 1
    return counts


def _subset(key: Key, family: TaskFamily, number: int) -> list[tuple[Task, float]]:
    """Tasks of a family in their order, with their weights, or how often they were drawn."""
    weights = np.array(family.weights or (1.0,) * len(family.train))
    if number == len(weights):
        return list(zip(family.train, weights.tolist(), strict=True))
    k_order, k_first = jax.random.split(key)
    order = np.asarray(jax.random.permutation(k_order, len(weights)))
    # Points at equal distances fall into intervals as long as the weights, in a random order.
    ends = np.cumsum(weights[order]) / np.sum(weights)
    points = (float(jax.random.uniform(k_first)) + np.arange(number)) / number
    drawn = Counter(order[np.searchsorted(ends[:-1], points, side="right")].tolist())
    return [(family.train[i], float(drawn[i])) for i in sorted(drawn)]


def _drawn(key: Key, label: str, draw: Draw, number: int) -> list[tuple[Task, float]]:
    """Tasks of different names, with the number of times that each was drawn."""
    found: dict[str, tuple[Task, float]] = {}
    for i in range(number):
        task = draw(jax.random.fold_in(key, i))
        if not isinstance(task, Task):
            raise ValueError(
                f"`parts` may have functions that return a Task; got {label}, which returns "
                f"{type(task).__name__}. Return l2o.Task(...)."
            )
        first, times = found.get(task.name, (task, 0.0))
        if _shapes(first) != _shapes(task):
            raise ValueError(
                f"`parts` may draw tasks of one name only if they are alike; got {task.name} of "
                f"other shapes from {label}. Put what differs into the name."
            )
        found[task.name] = first, times + 1.0
    return list(found.values())


def _shapes(task: Task) -> list[str]:
    """Names, shapes and dtypes of a task's parameters, by abstract evaluation."""
    params = jax.eval_shape(lambda key: task.init(key, task.sample(key)), jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [f"{jax.tree_util.keystr(path)} {leaf.dtype}{leaf.shape}" for path, leaf in leaves]
