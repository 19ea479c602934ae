"""Rollback: meta-training goes back if the population that it trains diverges.

Let s be the share of the inner steps of an outer step that have diverged, with a policy that of
the runs that ended in it, and q its moving average. All is well unless half of those that usually
do not have diverged, s > q + (1 - q) / 2, over all tasks or on one of them. Then theta, its
average and the meta-optimizer, of which a copy is kept every ten outer steps, go back to the copy
before the last, so that the steps that led there are forgotten, too; the population begins anew,
and the updates that follow are half as long. With each outer step that is well they are longer by
half a per cent, up to their own length.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2o.estimators.estimator import EstimatorState
from l2o.estimators.population import Population
from l2o.learned_optimizer import Theta
from l2o.learner import Learner, MetaState
from l2o.task import Data, Key

COPY_EVERY = 10
DECAY = 0.9
GROWTH = 1.005
SHORTEST = 1e-3
ANEW = 2**31 - 1
"""Folded into the key of a population that begins anew; no member has this number."""


class Copy(NamedTuple):
    """What goes back: theta, its average, and the state of the meta-optimizer."""

    theta: Theta
    average: Theta
    opt_state: Any


class Rollback(NamedTuple):
    """State of the population, and what is needed to go back.

    Attributes:
        estimator_state: State of the population.
        last: The last copy.
        earlier: The copy before, to which meta-training goes back.
        share: Average share of what has diverged, over all tasks and on each; -1 before the first.
        length: Factor of updates, in (0, 1]; a float32 scalar.
        well: Outer steps that were well, since the beginning or the last that was not; int32.
    """

    estimator_state: EstimatorState
    last: Copy
    earlier: Copy
    share: jax.Array
    length: jax.Array
    well: jax.Array


def with_rollback(learner: Learner) -> Learner:
    """Let meta-training go back where its population diverges.

    Until then theta is that of `learner`, but for rounding. Metrics have `rolled_back`, 1 for an
    outer step from which it went back and else 0, and `length`, the factor of updates.

    >>> import jax, l2o, optax
    >>> from l2o.tasks.quadratic import rosenbrock
    >>> lopt = l2o.learnable_sgd()
    >>> problem = l2o.inner_problem(rosenbrock(), lopt, horizon=10, window=5)
    >>> learner = l2o.gradient_learner(l2o.pes(problem, num_pairs=2, std=0.1), optax.adam(0.01))
    >>> learner, key = l2o.with_rollback(learner), jax.random.key(0)
    >>> state = learner.init(key, lopt.init(key))
    >>> float(learner.step(key, state, learner.data)[1]["rolled_back"])
    0.0

    Args:
        learner: Learner of `l2o.gradient_learner` or `l2o.rl.ppo.ppo_learner`. Evolution strategies
            keep their mean to themselves and cannot be told another.

    Returns:
        A learner whose `init` raises a `ValueError` if there is no metric `diverged`.
    """

    def init(key: Key, theta: Theta) -> MetaState:
        state = learner.init(key, theta)
        _, metrics = jax.eval_shape(learner.step, key, state, learner.data)
        if not shares_of(metrics):
            raise ValueError(
                "`learner` must have a metric `diverged`; got one with "
                f"{', '.join(metrics) or 'none'}. Try l2o.gradient_learner(...)."
            )
        copy = lambda: jax.tree.map(jnp.copy, Copy(state.theta, state.average, state.opt_state))
        return state._replace(
            estimator_state=Rollback(
                estimator_state=state.estimator_state,
                last=copy(),
                earlier=copy(),
                share=-jnp.ones(len(shares_of(metrics)), jnp.float32),
                length=jnp.float32(1.0),
                well=jnp.int32(0),
            )
        )

    def step(key: Key, state: MetaState, data: Data) -> tuple[MetaState, dict[str, jax.Array]]:
        before = Copy(state.theta, state.average, state.opt_state)
        known: Rollback = state.estimator_state
        after, metrics = learner.step(
            key, state._replace(estimator_state=known.estimator_state), data
        )
        share = jnp.stack(shares_of(metrics))
        is_first = known.share < 0.0
        is_bad = jnp.any(~is_first & (share > 0.5 * (1.0 + known.share)))
        shortened = lambda old, new: jnp.where(
            known.length < 1.0, old + known.length * (new - old), new
        )
        theta, average = jax.tree.map(shortened, before[:2], (after.theta, after.average))

        def go_back() -> tuple[Copy, EstimatorState]:
            theta = learner.theta(state._replace(average=known.earlier.theta))
            anew = learner.init(jax.random.fold_in(key, ANEW), theta).estimator_state
            return known.earlier, at_step_of(after.estimator_state, anew)

        def go_on() -> tuple[Copy, EstimatorState]:
            return Copy(theta, average, after.opt_state), after.estimator_state

        now, estimator_state = jax.lax.cond(is_bad, go_back, go_on)
        well = jnp.where(is_bad, 0, known.well + 1)
        is_due = ~is_bad & (well % COPY_EVERY == 0)
        choose = lambda condition, x, y: jax.tree.map(lambda a, b: jnp.where(condition, a, b), x, y)
        length = jnp.where(is_bad, 0.5 * known.length, GROWTH * known.length)
        rollback = Rollback(
            estimator_state=estimator_state,
            last=choose(is_bad, known.earlier, choose(is_due, before, known.last)),
            earlier=choose(is_due, known.last, known.earlier),
            share=jnp.where(is_first, share, DECAY * known.share + (1.0 - DECAY) * share),
            length=jnp.clip(length, SHORTEST, 1.0),
            well=well,
        )
        metrics = metrics | {
            "rolled_back": is_bad.astype(jnp.float32),
            "length": known.length,
        }
        return MetaState(now.theta, now.average, now.opt_state, rollback, after.step), metrics

    return dataclasses.replace(learner, init=init, step=step)


def shares_of(metrics: Mapping[str, jax.Array]) -> list[jax.Array]:
    """Shares of what has diverged: over all tasks, and on each where there are several."""
    return [v for name, v in metrics.items() if name.rpartition("/")[2] == "diverged"]


def at_step_of(before: EstimatorState, anew: EstimatorState) -> EstimatorState:
    """Let populations that begin anew go on with the schedule of their std."""
    is_population = lambda x: isinstance(x, Population)
    return jax.tree.map(
        lambda old, new: new._replace(step=old.step) if is_population(new) else new,
        before,
        anew,
        is_leaf=is_population,
    )
