"""Mixtures: tasks and families to meta-train on side by side, with weights.

Every task of a mixture is a compiled program of its own, so their number is bounded, and what is
drawn is drawn once, when the mixture is made. Weights are no chances of being drawn: each part has
its weight in the meta-gradient whatever the number of its tasks,
    weight of a task = weight of its part / sum of weights · share of the part's tasks.
"""

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax

from l2o.registry import task_family
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
    largest weight for a task; a family's are drawn without replacement. Tasks of one name that a
    function has drawn are one, with a weight for each time.

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
        families that were mixed and are not in `train`.

    Raises:
        ValueError: If there are no parts, two have one name, a weight is not positive, `num_tasks`
            is missing or less than the number of parts, or tasks of one name have other shapes.
    """
    check_seed(seed)
    sources: dict[str, TaskFamily | Draw] = {}
    weights: dict[str, float] = {}
    for part, weight in parts.items():
        label, source = _source(part)
        if label in sources:
            raise ValueError(
                f"`parts` must have names of their own; got {label} twice. Drop or rename one."
            )
        sources[label], weights[label] = source, weight
    if not sources or not all(0 < weight < math.inf for weight in weights.values()):
        raise ValueError(
            f"`parts` must have positive, finite weights, at least one; got {weights}. "
            'Try {"digits_mlp": 1.0}.'
        )
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
                raise ValueError(
                    f"`parts` must have tasks that differ; got {task.name} in two. Drop one."
                )
            tasks[task.name] = task
            shares[task.name] = weights[label] / sum(weights.values()) * share / whole
    families = [source for source in sources.values() if isinstance(source, TaskFamily)]
    evaluation = {task.name: task for family in families for task in family.evaluation}
    return TaskFamily(
        name=name,
        train=tuple(tasks.values()),
        evaluation=tuple(task for task in evaluation.values() if task.name not in tasks),
        weights=tuple(shares.values()),
    )


def _source(part: str | Task | TaskFamily | Draw) -> tuple[str, TaskFamily | Draw]:
    """The name of a part, and the family or the function that it is."""
    if isinstance(part, str):
        return part, task_family(part)
    if isinstance(part, Task):
        return part.name, TaskFamily(name=part.name, train=(part,), evaluation=())
    if isinstance(part, TaskFamily):
        return part.name, part
    return getattr(part, "__name__", type(part).__name__), part


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
    """Some tasks of a family in their order, with their weights."""
    weights = family.weights or (1.0,) * len(family.train)
    order = jax.random.permutation(key, len(family.train))
    return [(family.train[i], weights[i]) for i in sorted(order[:number].tolist())]


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
