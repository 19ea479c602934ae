"""Stale gradients: an optimizer is given gradients of some steps ago.

Metz et al. 2022 (VeLO, arXiv:2211.09760) meta-train on 1 to 8 steps of delay, as asynchronous
training has. Tasks here are pure functions with no memory between steps, so it is the optimizer's
state that keeps the gradients, and the optimizer that is wrapped.
"""

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
    of the step itself. To meta-train on delays, wrap the optimizer of some of the problems; theta
    is that of the plain optimizer, and so is a release file. A policy comes back as a plain learned
    optimizer, which estimators take and policy gradients do not.

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

    Args:
        lopt: Learned optimizer to wrap.
        delay: Number of steps, at least 1; the state keeps as many gradients.

    Raises:
        ValueError: If `delay` < 1.
    """
    if delay < 1:
        raise ValueError(f"`delay` must be at least 1; got {delay}. Try delay=4.")

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
