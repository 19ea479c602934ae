"""Cost of a training run: the quantity that is measured, on which batches, and its summary.

Estimators see the cost of a run as the mean of one number a step, so that windows of it can be
estimated apart. Every summary is such a mean, for a run of T steps that measures c_1 .. c_T:
    mean             c_t
    log              ln(c_t + 0.001), the area under the logarithm of the curve
    late_log         2 t / (T + 1) ln(c_t + 0.001), the same with weights that grow over the run
    final_log        T/n ln(c_t + 0.001) in the last n = ⌈T/10⌉ steps, 0 before: the mean there
    final            T c_T at the last step, 0 before
    best             T (b_t - b_{t-1}), b_t the lowest so far and b_0 = 0: the sum telescopes to b_T
    steps_to_target  1 while the target has not been reached, else 0: the fraction of the run
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import optax

from l2o.task import Batch, Data, Instance, Key, Task

Summary = Literal["mean", "log", "late_log", "final_log", "final", "best", "steps_to_target"]
Batches = Literal["step", "train", "valid"]

Best = jax.Array | tuple[()]

LOGARITHMS = ("log", "late_log", "final_log")
"""Summaries of the logarithm of the loss."""

LOG_FLOOR = 1e-3
"""Added to a loss before its logarithm, so that a solved problem is not worth everything."""


@dataclass(frozen=True)
class Objective:
    """Cost of a training run, which meta-training minimises.

    >>> Objective("final", measure="accuracy", measure_on="valid").is_differentiable
    False

    Attributes:
        summary: Summary of the measurements along a run: "mean", "log", "late_log",
            "final_log", "final", "best" or "steps_to_target"; see the module.
        measure: Quantity that is measured: "loss", up to the task's cap, or the name of one of the
            task's metrics. A metric needs no gradient; those in `Task.maximized` count negatively.
        measure_on: Batches of a measurement: "step" is the step's own batch before its update;
            "train" and "valid" are fresh batches of that split after it.
        measure_batches: Number of fresh batches of each measurement.
        target: Value of the measure that "steps_to_target" waits for.
        normalize: Whether to divide a loss by `Task.loss_scale`, which makes tasks comparable.
    """

    summary: Summary = "mean"
    measure: str = "loss"
    measure_on: Batches = "step"
    measure_batches: int = 1
    target: float | None = None
    normalize: bool = False

    @property
    def is_differentiable(self) -> bool:
        """Whether backpropagation gives the gradient of the cost."""
        return self.measure == "loss" and self.summary != "steps_to_target"

    @property
    def follows_best(self) -> bool:
        """Whether a run has to remember the lowest cost so far."""
        return self.summary in ("best", "steps_to_target")


def check_objective(objective: Objective, task: Task) -> None:
    """Raise a `ValueError` that says what to type if the task cannot be measured this way."""
    for name, known in (("summary", Summary), ("measure_on", Batches)):
        if (value := getattr(objective, name)) not in get_args(known):
            raise ValueError(
                f"`{name}` must be one of {', '.join(get_args(known))}; got {value}. "
                f"Try {get_args(known)[0]}."
            )
    num_batches = objective.measure_batches
    if num_batches < 1:
        raise ValueError(
            f"`measure_batches` must be at least 1; got {num_batches}. Try measure_batches=1."
        )
    if objective.measure_on == "step" and num_batches != 1:
        raise ValueError(
            f"`measure_batches` must be 1 on the step's own batch; got {num_batches}. "
            "Try measure_on=train or measure_on=valid."
        )
    check_target(objective, task)
    if objective.measure != "loss":
        check_metric(objective, task)
    check_measurement(objective, task)


def check_target(objective: Objective, task: Task) -> None:
    """Raise a `ValueError` unless there is a target that can be reached where one is needed."""
    target = objective.target
    if (target is None) == (objective.summary == "steps_to_target"):
        raise ValueError(
            f"`target` goes with the objective steps_to_target; got target={target} "
            f"with {objective.summary}. "
            + ("Drop it." if target is not None else "Try target=0.1.")
        )
    below = task.loss_cap if objective.measure == "loss" else math.inf
    if target is not None and not -math.inf < target < below:
        raise ValueError(
            "`target` must be finite and, for a loss, below the cap of task "
            f"{task.name}, {below:g}; got {target}. Try target={0.1 * task.loss_scale:g}."
        )


def check_metric(objective: Objective, task: Task) -> None:
    """Raise a `ValueError` unless the task has the metric, and it can be summed up this way."""
    names = metric_names(task)
    if objective.measure not in names:
        raise ValueError(
            f"`measure` must be loss or a metric of task {task.name}; got {objective.measure}. "
            f"Try {', '.join(('loss', *names))}."
        )
    if objective.summary in LOGARITHMS:
        raise ValueError(
            f"`measure` must be loss for the objective {objective.summary}; got "
            f"{objective.measure}. Try the objective mean or final."
        )
    if objective.normalize:
        raise ValueError(
            f"`normalize` goes with the loss; got {objective.measure}. Drop one of them."
        )


def check_measurement(objective: Objective, task: Task) -> None:
    """Raise a `ValueError` unless the task has such batches, and the measure is a scalar."""
    split = "valid" if objective.measure_on == "valid" else "train"

    def measurement(key: Key, data: Data):
        k_sample, k_init, k_batch = jax.random.split(key, 3)
        instance = task.sample(k_sample)
        batch = task.batch(k_batch, instance, data, split)
        return cost_on_batch(objective, task, task.init(k_init, instance), batch, instance)

    try:
        cost = jax.eval_shape(measurement, jax.random.key(0), task.data)
    except KeyError as error:
        raise ValueError(
            f"`measure_on` must be batches that task {task.name} has; got {split} "
            f"(KeyError: {error}). Try measure_on=train."
        ) from error
    if cost.shape != ():
        raise ValueError(
            f"`measure` must be a scalar; got {objective.measure} of shape {cost.shape} in task "
            f"{task.name}. Return its mean."
        )


def metric_names(task: Task) -> list[str]:
    """List the names of a task's metrics, by abstract evaluation."""

    def metrics(key: Key, data: Data):
        k_sample, k_init, k_batch = jax.random.split(key, 3)
        instance = task.sample(k_sample)
        params = task.init(k_init, instance)
        return dict(task.metrics(params, task.batch(k_batch, instance, data, "train"), instance))

    return sorted(jax.eval_shape(metrics, jax.random.key(0), task.data))


def capped(loss: jax.Array, cap: float) -> jax.Array:
    """Cap a loss; a diverged one (NaN or above the cap) counts as the cap."""
    return jnp.where(jnp.isnan(loss), cap, jnp.minimum(loss, cap))


def as_cost(objective: Objective, task: Task, value: jax.Array | float) -> jax.Array:
    """Turn a value of the measure into a cost, the lower the better."""
    if objective.measure == "loss":
        scale = task.loss_scale if objective.normalize else 1.0
        return capped(jnp.asarray(value), task.loss_cap) / scale
    sign = -1.0 if objective.measure in task.maximized else 1.0
    worst = task.metric_caps.get(objective.measure, sign * jnp.inf)
    return capped(sign * jnp.asarray(value), sign * worst)


def at_least_float32(value: jax.Array) -> jax.Array:
    """Widen a measurement before it is summed or subtracted: bfloat16 has two to three digits."""
    return value.astype(jnp.promote_types(value.dtype, jnp.float32))


def cost_on_batch(
    objective: Objective, task: Task, params: optax.Params, batch: Batch, instance: Instance
) -> jax.Array:
    """Measure the cost on one batch, a scalar of at least float32."""
    if objective.measure == "loss":
        value = task.loss(params, batch, instance)
    else:
        value = task.metrics(params, batch, instance)[objective.measure]
    return as_cost(objective, task, at_least_float32(value))


def on_fresh_batches(
    objective: Objective, task: Task, key: Key, params: optax.Params, instance: Instance, data: Data
) -> jax.Array:
    """Measure the mean cost over fresh batches of the objective's split, a scalar."""
    split = "valid" if objective.measure_on == "valid" else "train"

    def measure_batch(k_batch: Key) -> jax.Array:
        batch = task.batch(k_batch, instance, data, split)
        return cost_on_batch(objective, task, params, batch, instance)

    if objective.measure_batches == 1:
        return measure_batch(key)
    return jnp.mean(jax.vmap(measure_batch)(jax.random.split(key, objective.measure_batches)))


def log_weights(summary: Summary, steps: jax.Array, horizon: jax.Array) -> jax.Array:
    """Weigh the logarithm at each step; the weights of a run have mean 1, shape (window,)."""
    if summary == "late_log":
        return 2.0 * steps / (horizon + 1)
    if summary == "final_log":
        last = jnp.ceil(horizon / 10)
        return jnp.where(steps > horizon - last, horizon / last, 0.0)
    return jnp.ones(steps.shape)


def contributions(
    objective: Objective,
    task: Task,
    costs: jax.Array,
    steps: jax.Array,
    horizon: jax.Array,
    best: Best,
) -> tuple[jax.Array, Best]:
    """Compute the contribution of each step to the cost of its run, which is their mean.

    Args:
        objective: Objective that sums up the costs.
        task: Task that is measured.
        costs: Costs measured at each step, shape (window,); for "final", only the last one counts.
        steps: Numbers of the steps in the run, from 1, shape (window,); the last is the horizon.
        horizon: Number of inner steps of the whole run.
        best: Lowest cost before the window, infinite at the start; () if not `follows_best`.

    Returns:
        The contributions, shape (window,), and the lowest cost after the window.
    """
    if isinstance(best, tuple):
        if objective.summary in LOGARITHMS:
            logs = jnp.log(jnp.maximum(costs, 0.0) + LOG_FLOOR)
            return log_weights(objective.summary, steps, horizon) * logs, best
        if objective.summary == "final":
            return jnp.where(steps >= horizon, horizon * costs, 0.0), best
        return costs, best
    lowest = jnp.minimum(jax.lax.cummin(costs), best)
    if objective.summary == "best":
        before = jnp.roll(lowest, 1).at[0].set(jnp.where(jnp.isinf(best), 0.0, best))
        return horizon * (lowest - before), lowest[-1]
    target = as_cost(objective, task, math.nan if objective.target is None else objective.target)
    return (lowest > target).astype(costs.dtype), lowest[-1]
