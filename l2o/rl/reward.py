"""Rewards for an action, by one or several things a user wants.

    log_loss   ln(L + 0.00001) before the action less the same after it: the decrease of the log
               of the loss on fresh batches, which telescopes to that of the whole run
    loss       less the loss of each step of the interval, over `Task.loss_scale` and the horizon:
               the sum of a run that does not diverge is less its mean loss, the cost that evolution
               strategies have
    examples   less the fraction of each batch that counted, over the horizon: what a policy that
               chooses the size of batches saves; the sum of a run is between -1 and 0
    a metric   its gain on fresh batches, which telescopes to that of the whole run; those not in
               `Task.maximized` gain by falling

Gains telescope where later rewards are not discounted; with γ < 1 early gains count for more, and
the objective is not what the run reached. (Potentials that do not change an objective are paid as
γ Φ' - Φ; Ng, Harada, Russell 1999.)

Each is a scalar; the reward is their weighted sum. A run that diverges ends there, and pays
`penalty`; the steps left count at the task's cap for "loss", and as whole batches for "examples",
and what is measured counts as its worst, the cap of the loss and `Task.metric_caps`.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from l2o.objective import Objective, as_cost, capped, check_measurement, metric_names
from l2o.task import Data, Instance, Key, Split, Task

LOSSES = ("log_loss", "loss")

BUILT_IN = (*LOSSES, "examples")
"""Rewards that any task has; all others are its metrics."""

LOG_FLOOR = 1e-5
"""Added to a loss before its logarithm, so that a solved problem is not worth everything."""


@dataclass(frozen=True)
class Reward:
    """Reward for an action, a weighted sum.

    >>> Reward(("log_loss", "accuracy"), weights=(1.0, 0.5), on="valid").penalty
    1.0

    Attributes:
        names: Names of the rewards: "log_loss", "loss", "examples", or metrics of the task.
        weights: Weight of each reward; all 1 if not given.
        on: Split of the fresh batches, "train" or "valid".
        batches: Number of fresh batches of one measurement.
        penalty: Penalty of a diverged run.
    """

    names: tuple[str, ...] = ("log_loss",)
    weights: tuple[float, ...] = ()
    on: Split = "train"
    batches: int = 4
    penalty: float = 1.0

    @property
    def weight_array(self) -> jax.Array:
        """Weights, shape (names,)."""
        return jnp.asarray(self.weights or (1.0,) * len(self.names), jnp.float32)


def check_reward(reward: Reward, task: Task) -> None:
    """Raise a `ValueError` that says what to type if the task cannot be rewarded so."""
    if not reward.names:
        raise ValueError("`reward` must name at least one; got none. Try reward=log_loss.")
    known = (*BUILT_IN, *metric_names(task))
    for name in reward.names:
        if name not in known:
            raise ValueError(
                f"`reward` must be {', '.join(BUILT_IN)} or a metric of task {task.name}; got "
                f"{name}. Try {', '.join(known)}."
            )
    if len(set(reward.names)) < len(reward.names):
        raise ValueError(f"`reward` must differ; got {' '.join(reward.names)}. Drop one.")
    if len(reward.weights) not in (0, len(reward.names)):
        raise ValueError(
            f"`reward.weights` must be one for each of {len(reward.names)} rewards; got "
            f"{len(reward.weights)}. Leave it out for equal ones."
        )
    if not all(0 < weight < math.inf for weight in reward.weights):
        raise ValueError(
            f"`reward.weights` must be positive and finite; got {list(reward.weights)}. Try 1."
        )
    if not math.isfinite(task.loss_cap):
        raise ValueError(
            f"`loss_cap` of task {task.name} must be finite for rewards; got {task.loss_cap}. "
            "Use a few times the loss at initialisation."
        )
    if reward.on not in ("train", "valid"):
        raise ValueError(
            f"`reward.on` must be train or valid; got {reward.on}. Try reward.on=train."
        )
    if reward.batches < 1:
        raise ValueError(
            f"`reward.batches` must be at least 1; got {reward.batches}. Try reward.batches=4."
        )
    if not 0 <= reward.penalty < math.inf:
        raise ValueError(f"`penalty` must not be negative; got {reward.penalty}. Try penalty=1.")
    for name in reward.names:
        if name not in BUILT_IN and name not in task.metric_caps:
            raise ValueError(
                f"`reward` must have a worst value, so that a run that diverges can be paid; got "
                f"{name}, which has none in task {task.name}. Add it to metric_caps."
            )
        measure = "loss" if name in BUILT_IN else name
        check_measurement(Objective(measure=measure, measure_on=reward.on), task)


def measure(
    reward: Reward,
    task: Task,
    key: Key,
    params: optax.Params,
    instance: Instance,
    data: Data,
    *,
    limit: jax.Array | float = math.inf,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Measure the loss on fresh batches, and the potentials of the rewards.

    Args:
        reward: Names of the rewards, and how they are measured.
        task: Task that is trained.
        key: Random key of the batches.
        params: Parameters of the task.
        instance: Sampled problem.
        data: Data of the task.
        limit: Loss above which a run has diverged; at least the task's cap.

    Returns:
        The mean loss, a scalar that may be infinite or NaN; the potentials of shape (names,), whose
        differences are the rewards, 0 for "loss" and "examples", which are summed over steps; and
        whether the run has diverged, a scalar.
    """

    def measure_batch(k_batch: Key) -> tuple[jax.Array, dict[str, jax.Array]]:
        batch = task.batch(k_batch, instance, data, reward.on)
        names = [name for name in reward.names if name not in BUILT_IN]
        found = dict(task.metrics(params, batch, instance)) if names else {}
        gains = {name: -as_cost(Objective(measure=name), task, found[name]) for name in names}
        return task.loss(params, batch, instance), gains

    keys = jax.random.split(key, reward.batches)
    found = jax.vmap(measure_batch)(keys)
    losses, gains = jax.tree.map(lambda x: jnp.mean(x.astype(jnp.float32), axis=0), found)
    diverged = ~jnp.isfinite(losses) | (losses > limit)
    # What has diverged may be right by chance: its metrics are at their worst.
    worst = {name: -as_cost(Objective(measure=name), task, jnp.nan) for name in gains}
    gains = {name: jnp.where(diverged, worst[name], gains[name]) for name in gains}
    # A loss below zero, of a task that has them, counts as zero.
    log_loss = jnp.log(jnp.maximum(capped(losses, task.loss_cap), 0.0) + LOG_FLOOR)
    by_step = {"loss": jnp.zeros(()), "examples": jnp.zeros(())}
    potentials = {"log_loss": -log_loss, **by_step, **gains}
    return losses, jnp.stack([potentials[name] for name in reward.names]), diverged


def compute_reward(
    reward: Reward,
    task: Task,
    before: jax.Array,
    after: jax.Array,
    losses: jax.Array,
    fractions: jax.Array,
    *,
    steps_left: jax.Array,
    horizon: jax.Array,
    diverged: jax.Array,
) -> jax.Array:
    """Compute the reward for an action by each name, shape (names,), without the penalty.

    Args:
        reward: Names of the rewards, and how they are measured.
        task: Task that is trained.
        before: Potentials before the action, shape (names,).
        after: Potentials when it has ended, shape (names,).
        losses: Losses of the inner steps between, float32 of shape (action_interval,).
        fractions: Fractions of their batches that counted, float32 of shape (action_interval,).
        steps_left: Number of inner steps of the run after the action, not negative.
        horizon: Number of inner steps of the whole run.
        diverged: Whether the run ends here because it diverged.
    """
    cost = jnp.sum(as_cost(Objective(normalize=True), task, losses))
    worst = as_cost(Objective(normalize=True), task, jnp.inf)
    lost = jnp.where(diverged, steps_left, 0.0)
    by_step = {
        "loss": -(cost + lost * worst) / horizon,
        "examples": -(jnp.sum(fractions) + lost) / horizon,
    }
    gains = after - before
    return jnp.stack([by_step.get(name, gains[i]) for i, name in enumerate(reward.names)])
