"""What a policy does to each hyperparameter over a run, and what following the mean of it costs.

The policy trains a task from several starts. At every step the values are averaged over the starts
on the scale on which the policy changes them, ln x or ln(1 - x) for a decay, so rates have their
geometric mean. The schedule of these means, which reads nothing of a run, then trains from as many
other starts beside the policy; its cost is the ratio of final losses, start by start.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.evaluation.starts import Start, draw_starts
from l2o.evaluation.statistics import Estimate, mean_interval
from l2o.evaluation.training import Curves, Trainer
from l2o.inner_step import batch_fraction, inner_step
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.loops.diagnostics import diagnostics
from l2o.policies.base_optimizers import HYPERPARAMETERS, BaseOptimizer, base_optimizer
from l2o.policies.frozen_schedule import frozen_optimizer
from l2o.policies.policy import PolicyOptimizer
from l2o.task import Data, Key, Task
from l2o.tree import named_leaves

PREFIX = "hyperparameters/"
"""Before the names of hyperparameters in `l2o.diagnostics`."""


class FoundSchedule(NamedTuple):
    """What a policy did on a task, and the schedule of it.

    Attributes:
        task: Name of the task.
        tensors: Names of the tensors that have hyperparameters of their own; () if all share them.
        base: Optimizer that is controlled.
        recorded: Value of each hyperparameter at each step, shape (seeds, horizon), or (seeds,
            horizon, tensors).
        values: The schedule: its means over seeds, shape (horizon,) or (horizon, tensors).
        policy: Runs of the policy from other starts.
        frozen: Runs of the schedule from these.
    """

    task: str
    tensors: tuple[str, ...]
    base: BaseOptimizer
    recorded: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray]
    policy: Curves
    frozen: Curves

    @property
    def cost(self) -> Estimate | None:
        """Geometric mean of the final loss of the schedule over that of the policy.

        None if a loss is not positive.
        """
        losses = np.stack([self.frozen.final_loss, self.policy.final_loss])
        if np.any(losses <= 0):
            return None
        return Estimate(*np.exp(mean_interval(np.log(losses[0] / losses[1]))).tolist())


def find_schedule(
    key: Key, task: Task, lopt: LearnedOptimizer, theta: Theta, *, horizon: int, num_seeds: int
) -> FoundSchedule:
    """Record a policy on a task, and train by the schedule of its means beside it.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> lopt = l2o.scheduler(action_interval=2, hidden_size=4)
    >>> theta = lopt.init(jax.random.key(0))
    >>> key = l2o.stream(0, "evaluation")
    >>> found = find_schedule(key, rotated_quadratic(2), lopt, theta, horizon=4, num_seeds=8)
    >>> found.values["learning_rate"].shape
    (4,)

    Args:
        key: Random key from `stream(seed, "evaluation")`.
        task: Task to train.
        lopt: Policy that sets hyperparameters.
        theta: Its theta.
        horizon: Inner steps of a run.
        num_seeds: Number of starts of either kind.

    Raises:
        ValueError: If it is no such policy, or its hyperparameters are never finite.
    """
    check_sets_hyperparameters(lopt)
    starts = draw_starts(key, task, 2 * num_seeds)
    seen, fresh = (
        jax.tree.map(lambda x, half=half: x[half], starts)
        for half in (slice(num_seeds), slice(num_seeds, None))
    )
    recorded = record_hyperparameters(task, lopt, theta, seen, horizon)
    values = {name: mean_of(name, rows) for name, rows in recorded.items()}
    base = base_optimizer(lopt.config["base"])

    def train(make) -> Curves:
        trainer = Trainer(task, make, horizon=horizon)
        (curves,) = trainer.train(np.zeros(1), fresh, splits=())
        return curves

    is_shared = all(rows.ndim == 1 for rows in values.values())
    return FoundSchedule(
        task=task.name,
        tensors=() if is_shared else tuple(named_leaves(starts.params)),
        base=base,
        recorded=recorded,
        values=values,
        policy=train(lambda setting: lopt.transform(theta, horizon=horizon)),
        frozen=train(lambda setting: frozen_optimizer(base, values)),
    )


def check_sets_hyperparameters(lopt: LearnedOptimizer) -> None:
    """Raise a `ValueError` unless it is a policy that sets hyperparameters of an optimizer."""
    if not isinstance(lopt, PolicyOptimizer) or "base" not in lopt.config:
        raise ValueError(
            f"`RUN` must be a policy that sets hyperparameters; got one of {lopt.name}, which has "
            "none. Try one of scheduler or per_tensor_controller."
        )


def record_hyperparameters(
    task: Task, lopt: LearnedOptimizer, theta: Theta, starts: Start, horizon: int
) -> dict[str, np.ndarray]:
    """Train from each start; record the hyperparameters of every step.

    Returns:
        Shape (seeds, horizon) or (seeds, horizon, tensors), by name.
    """
    names = ("learning_rate", *lopt.config["hyperparameters"])

    @jax.jit
    def record(theta: Theta, starts: Start, data: Data) -> dict[str, jax.Array]:
        tx = lopt.transform(theta, horizon=horizon)

        def step(carry: tuple[optax.Params, optax.OptState], i: jax.Array, start: Start):
            params, state = carry
            fraction = batch_fraction(state)
            key = jax.random.fold_in(start.key, i)
            params, state, *_ = inner_step(task, tx, key, params, state, start.instance, data)
            found = {k.removeprefix(PREFIX): v for k, v in diagnostics(state).items()}
            found |= {} if fraction is None else {"batch_fraction": fraction}
            return (params, state), {name: found[name] for name in names}

        def run(start: Start) -> dict[str, jax.Array]:
            carry = (start.params, tx.init(start.params))
            return jax.lax.scan(lambda c, i: step(c, i, start), carry, jnp.arange(horizon))[1]

        return jax.vmap(run)(starts)

    return {name: np.asarray(x) for name, x in record(theta, starts, task.data).items()}


def mean_of(name: str, rows: np.ndarray) -> np.ndarray:
    """Average a hyperparameter over the first axis, on the scale on which policies change it.

    >>> mean_of("learning_rate", np.array([[0.01], [1.0]])).round(6).tolist()
    [0.1]
    >>> mean_of("momentum", np.array([[0.9], [0.999]])).round(6).tolist()
    [0.99]

    Raises:
        ValueError: If on no seed all of its values are finite.
    """
    is_finite = np.all(np.isfinite(rows), axis=tuple(range(1, rows.ndim)))
    if not np.any(is_finite):
        raise ValueError(
            f"`RUN` must set finite hyperparameters; got none of {name} on any seed. "
            "Try another --task, or a shorter --horizon."
        )
    rows = np.asarray(rows[is_finite], np.float64)
    if name in HYPERPARAMETERS and HYPERPARAMETERS[name].complement:
        return -np.expm1(np.mean(np.log1p(-rows), axis=0))
    return np.exp(np.mean(np.log(rows), axis=0))
