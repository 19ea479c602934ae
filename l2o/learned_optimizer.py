"""What trains: a function from meta-parameters theta to an optax transformation."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from l2o.task import Key

Theta = Any
"""Meta-parameters: a pytree of float arrays (nested dicts and lists, for release files)."""

Horizon = int | jax.Array | None
"""Number of inner steps of the whole training run."""


class TransformFn(Protocol):
    """`(theta, *, horizon=None) -> optax transformation`."""

    def __call__(
        self, theta: Theta, *, horizon: Horizon = None
    ) -> optax.GradientTransformationExtraArgs:
        """The transformation that theta stands for, in a run of `horizon` steps."""
        ...


@dataclass(frozen=True, eq=False)
class LearnedOptimizer:
    """A learned-optimizer design: how theta looks, and the optax transformation it stands for.

    Attributes:
        name: the design, as in `l2o list` and in release files.
        init: `(key) -> theta`.
        transform: `(theta, *, horizon=None) -> optax.GradientTransformationExtraArgs`; its
            `update` needs `params` and takes the loss as `value=` (optax's own keyword).
        config: the JSON-able keyword arguments that rebuild this design by its constructor.
    """

    name: str
    init: Callable[[Key], Theta]
    transform: TransformFn
    config: Mapping[str, Any] = field(default_factory=dict)


def require_params(params: optax.Params | None, design: str) -> optax.Params:
    """`params`, or a `ValueError` that tells the caller how to pass them."""
    if params is None:
        raise ValueError(
            f"`params` is needed by {design}; got None. "
            "Call `tx.update(grads, state, params, value=loss)`."
        )
    return params


def require_horizon(horizon: Horizon, design: str) -> int | jax.Array:
    """`horizon`, or a `ValueError` that tells the caller how to pass it."""
    if horizon is None:
        raise ValueError(
            f"`horizon` is needed by {design}, whose step size follows the progress of the run; "
            "got None. Pass the number of training steps, for instance horizon=1000."
        )
    return horizon


def require_value(value: Any, design: str) -> jax.Array:
    """The loss in float32, or a `ValueError` that tells the caller how to pass it."""
    if value is None:
        raise ValueError(
            f"`value` is needed by {design}, which follows the loss; got None. "
            "Call `tx.update(grads, state, params, value=loss)`."
        )
    return jnp.asarray(value, jnp.float32)
