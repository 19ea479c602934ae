"""Stale gradients: an optimizer is given gradients of some steps ago.

Metz et al. 2022 (VeLO, arXiv:2211.09760) meta-train on 1 to 8 steps of delay, as asynchronous
training has. Tasks here are pure functions with no memory between steps, so it is the optimizer's
state that keeps the gradients, and the optimizer that is wrapped.
"""

from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o.learned_optimizer import Horizon, LearnedOptimizer, Theta


class StaleState(NamedTuple):
    """State of an optimizer that is given stale gradients.

    Attributes:
        inner: State of the optimizer.
        grads: Gradients of the last steps, each leaf with a first axis of the delay; circular.
        step: Number of steps so far, an int32 scalar.
    """

    inner: optax.OptState
    grads: optax.Updates
    step: jax.Array


def stale_gradients(lopt: LearnedOptimizer, *, delay: int) -> LearnedOptimizer:
    """Give a learned optimizer the gradients of `delay` steps ago.

    Until there are any that old, it is given those of the first step. Parameters and loss are those
    of the step itself. Theta is that of the plain optimizer, and so is a release file. A policy
    comes back as a plain learned optimizer, which estimators take and policy gradients do not.

    The delay belongs to the optimizer and not to a task, so it is no part of a mixture or of a run
    of the command line. To meta-train on several delays, average estimators over them in Python.

    >>> import jax.numpy as jnp
    >>> import l2o
    >>> lopt = l2o.stale_gradients(l2o.learnable_sgd(learning_rate=1.0), delay=2)
    >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
    >>> params = jnp.zeros(())
    >>> state = tx.init(params)
    >>> for gradient in (1.0, 2.0, 3.0, 4.0):
    ...     update, state = tx.update(jnp.float32(gradient), state, params)
    ...     print(f"{update:.1f}")
    -1.0
    -1.0
    -1.0
    -2.0
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> def delayed(delay):
    ...     lopt = l2o.stale_gradients(l2o.learnable_sgd(), delay=delay)
    ...     problem = l2o.inner_problem(rotated_quadratic(2), lopt, horizon=20, window=10)
    ...     return l2o.pes(problem, num_pairs=2, std=0.01)
    >>> estimator = l2o.average_estimators({f"delay_{d}": delayed(d) for d in (1, 4, 8)})

    Args:
        lopt: Learned optimizer to wrap.
        delay: Number of steps, at least 1; the state keeps as many gradients.

    Raises:
        ValueError: If it is no learned optimizer, or `delay` is no integer or < 1.
    """
    if not isinstance(lopt, LearnedOptimizer):
        given = getattr(lopt, "name", lopt)
        raise ValueError(
            f"`lopt` must be a LearnedOptimizer; got {type(lopt).__name__} {given}. "
            "Try l2o.stale_gradients(l2o.celo(), delay=4): the optimizer is wrapped, not the task."
        )
    if not isinstance(delay, Integral) or delay < 1:
        raise ValueError(f"`delay` must be an integer, at least 1; got {delay}. Try delay=4.")

    def transform(
        theta: Theta, *, horizon: Horizon = None
    ) -> optax.GradientTransformationExtraArgs:
        tx = lopt.transform(theta, horizon=horizon)

        def init(params: optax.Params) -> StaleState:
            kept = jax.tree.map(lambda p: jnp.zeros((delay, *p.shape), p.dtype), params)
            return StaleState(tx.init(params), kept, jnp.int32(0))

        def update(
            updates: optax.Updates,
            state: StaleState,
            params: optax.Params | None = None,
            **extra_args: Any,
        ) -> tuple[optax.Updates, StaleState]:
            slot, is_first = state.step % delay, state.step == 0
            kept = jax.tree.map(lambda k, g: jnp.where(is_first, g, k), state.grads, updates)
            stale = jax.tree.map(lambda k: k[slot], kept)
            kept = jax.tree.map(lambda k, g: k.at[slot].set(g), kept, updates)
            updates, inner = tx.update(stale, state.inner, params, **extra_args)
            return updates, StaleState(inner, kept, state.step + 1)

        return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]

    return LearnedOptimizer(lopt.name, lopt.init, transform, lopt.config)
