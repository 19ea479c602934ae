"""Tasks: distributions over inner problems, as bundles of pure functions."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import optax

Key = jax.Array
"""Typed PRNG key, as made by `jax.random.key`."""

Split = Literal["train", "valid", "test"]
"""Part of the data; no row belongs to two."""

Instance = Any
"""Pytree of arrays that describes one sampled problem (scale, subset of the data, ...)."""

Data = Any
"""Pytree of device arrays, handed to compiled functions as an argument."""

Batch = Any
"""Pytree of arrays; together with the instance it makes the loss deterministic."""


class Shared(NamedTuple):
    """Arrays of the data that every batch holds whole, such as frozen weights of a network.

    Where batches of a run are stacked these are not: they must not depend on a key or the instance.
    Each seed of an evaluation still holds one copy for each kind of batch.
    """

    arrays: Any


def batch_axes(batch: Batch) -> Any:
    """Axes for `jax.vmap` of stacked batches: none of what is `Shared`, the first of all else."""
    is_shared = lambda x: isinstance(x, Shared)
    return jax.tree.map(lambda x: None if is_shared(x) else 0, batch, is_leaf=is_shared)


def no_metrics(params: optax.Params, batch: Batch, instance: Instance) -> dict[str, jax.Array]:
    """Return no metrics, for a task that has only a loss."""
    del params, batch, instance
    return {}


@dataclass(frozen=True, eq=False)
class Task:
    """Distribution over inner problems that share their shapes.

    All randomness of the loss lives in `batch`, so that two parameter vectors can be compared on
    the same draw. Every function is pure, traceable and vmappable; `l2o.testing.check_task` checks
    that, and more.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import l2o
    >>> bowl = l2o.Task(
    ...     name="bowl",
    ...     sample=lambda key: {"minimum": jax.random.normal(key, (3,))},
    ...     init=lambda key, instance: {"x": jnp.zeros(3)},
    ...     batch=lambda key, instance, data, split: 0.1 * jax.random.normal(key, (3,)),
    ...     loss=lambda params, noise, instance: jnp.sum(
    ...         (params["x"] - instance["minimum"] - noise) ** 2
    ...     ),
    ...     loss_cap=30.0,
    ... )
    >>> bowl.init(jax.random.key(0), bowl.sample(jax.random.key(1)))["x"].shape
    (3,)

    Attributes:
        name: Name of the task in reports and release files.
        family: Name that variants of a task share; empty for the task's own name. An optimizer has
            seen a task if it was meta-trained on one of the same family, data and shapes.
        sample: Function `(key) -> instance` that draws one problem.
        init: Function `(key, instance) -> params` that draws a pytree of float arrays.
        batch: Function `(key, instance, data, split) -> batch` that draws a batch of a split.
        loss: Function `(params, batch, instance) -> scalar`, in nats per example for classifiers.
        loss_cap: Cost of a diverged run: losses above it, and NaN, count as this much in a
            meta-loss. With `inf` a non-finite member is masked instead.
        data: Arrays that `batch` reads, passed to compiled functions as an argument.
        metrics: Function `(params, batch, instance) -> {name: scalar}`; it needs no gradient.
        maximized: Names of the metrics that are better the larger they are.
        metric_caps: Worst value of each metric, by name: worse values, and NaN, count as this.
            Without a cap a non-finite metric masks its member.
        loss_scale: Typical loss at initialisation, by which losses of different tasks are made
            comparable.
        all_rows: Function `(instance, data, split) -> batch` of all rows that `batch` draws from,
            each once; it may be larger than others, and every seed of an evaluation is tested on
            it. None for a task that has no such rows: it is tested on batches that are drawn, and
            a metric that is no mean over rows, such as macro-F1, is averaged over them.
        shrink: Function `(batch, fraction) -> batch` of the same shapes in which about this
            fraction of the rows counts, at least one; None if the task has no such batches.
        modifies_gradients: Whether the gradient of the loss on a training batch is another than the
            loss has, as of `l2o.noisy_gradients`. Backpropagation then gives no gradient of losses
            on fresh training batches, and estimators refuse it.
        is_differentiable: Whether backpropagation gives the gradient of losses at all. It does not
            where the loss is an outcome, as a return is, and has the gradient of another objective
            for the optimizer; estimators then refuse it.
    """

    name: str
    sample: Callable[[Key], Instance]
    init: Callable[[Key, Instance], optax.Params]
    batch: Callable[[Key, Instance, Data, Split], Batch]
    loss: Callable[[optax.Params, Batch, Instance], jax.Array]
    loss_cap: float
    data: Data = field(default=(), repr=False)
    metrics: Callable[[optax.Params, Batch, Instance], Mapping[str, jax.Array]] = no_metrics
    maximized: frozenset[str] = frozenset()
    metric_caps: Mapping[str, float] = field(default_factory=dict)
    loss_scale: float = 1.0
    all_rows: Callable[[Instance, Data, Split], Batch] | None = None
    shrink: Callable[[Batch, jax.Array], Batch] | None = None
    family: str = ""
    modifies_gradients: bool = False
    is_differentiable: bool = True


def validate_task(task: Task) -> None:
    """Raise an error unless a task is well formed, which abstract evaluation tells.

    `l2o.testing.check_task` also runs it.

    Args:
        task: Task to validate.

    Raises:
        ValueError: If it is no task, parameters are not all floating point, the loss is not a float
            scalar, or `loss_cap` or `loss_scale` is not positive.
    """
    if not isinstance(task, Task):
        raise ValueError(
            f"`task` must be a Task; got {type(task).__name__} {getattr(task, 'name', task)}. "
            "Try a task of a family, for instance digits_mlp().train[0]."
        )

    def trial(key: Key, data: Data) -> tuple[optax.Params, jax.Array]:
        k_sample, k_init, k_batch = jax.random.split(key, 3)
        instance = task.sample(k_sample)
        params = task.init(k_init, instance)
        return params, task.loss(params, task.batch(k_batch, instance, data, "train"), instance)

    params, loss = jax.eval_shape(trial, jax.random.key(0), task.data)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
            raise ValueError(
                f"`task` {task.name}: parameters must be floating point; got {leaf.dtype} at "
                f"params{jax.tree_util.keystr(path)}. Keep integers in the instance or the batch."
            )
    if loss.shape != () or not jax.numpy.issubdtype(loss.dtype, jax.numpy.floating):
        raise ValueError(
            f"`task` {task.name}: the loss must be a float scalar; got {loss.dtype}{loss.shape}. "
            "Return its mean over the batch."
        )
    if not task.loss_cap > 0:
        raise ValueError(
            f"`loss_cap` of task {task.name} must be positive; got {task.loss_cap}. "
            "Use a few times the loss at initialisation."
        )
    if not 0 < task.loss_scale < math.inf:
        raise ValueError(
            f"`loss_scale` of task {task.name} must be positive and finite; got {task.loss_scale}. "
            "Use the loss at initialisation."
        )


@dataclass(frozen=True, eq=False)
class TaskFamily:
    """Tasks that belong together: variants to meta-train on, and tasks to report results on.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> small, large = rotated_quadratic(dim=2), rotated_quadratic(dim=10)
    >>> family = l2o.TaskFamily(name="quadratics", train=(small,), evaluation=(large,))
    >>> [task.name for task in family.evaluation]
    ['quadratic_10']

    Attributes:
        name: Name of the family at the command line.
        train: Variants of different shapes, meta-trained on side by side.
        evaluation: Tasks that results are reported on; they share no name with `train`.
        weights: Positive weight of each task of `train`, in any unit; equal if there are none.
        source: What the data are and where they come from; empty for what is drawn at random.
        licence: Licence that the source states for them.

    Raises:
        ValueError: If a name is used twice, or weights do not fit the tasks.
    """

    name: str
    train: tuple[Task, ...]
    evaluation: tuple[Task, ...]
    weights: tuple[float, ...] = ()
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        names = [task.name for task in (*self.train, *self.evaluation)]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(
                f"`train` and `evaluation` of family {self.name} must be disjoint, with names used "
                f"once; got {', '.join(repeated)} twice. Rename or drop one."
            )
        if self.weights and len(self.weights) != len(self.train):
            raise ValueError(
                f"`weights` of family {self.name} must be one number for each task of `train`; got "
                f"{len(self.weights)} for {len(self.train)}. Leave them out for equal ones."
            )
        if not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError(
                f"`weights` of family {self.name} must be positive and finite; got {self.weights}. "
                "Drop tasks that should not count."
            )

    def task_weights(self, total: float = 1.0) -> dict[str, float]:
        """Share out a weight among the tasks of `train`, by name, in proportion to `weights`.

        It is what `l2o.average_estimators` takes as its weights.

        Args:
            total: Weight of the whole family.
        """
        weights = self.weights or (1.0,) * len(self.train)
        return {
            task.name: total * weight / sum(weights)
            for task, weight in zip(self.train, weights, strict=True)
        }
