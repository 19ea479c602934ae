"""Learned optimizers: functions from meta-parameters theta to an optax transformation."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, ParamSpec, Protocol, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer

from l2o.leaves import on_any_tree
from l2o.task import Key

Theta = Any
"""Meta-parameters, a pytree of float arrays (nested dicts and lists, for release files)."""

Horizon = int | jax.Array | None
"""Number of inner steps of the whole training run."""


class TransformFn(Protocol):
    """Function `(theta, *, horizon=None) -> optax transformation`."""

    def __call__(
        self, theta: Theta, *, horizon: Horizon = None
    ) -> optax.GradientTransformationExtraArgs:
        """Make the transformation that theta stands for, in a run of `horizon` steps."""
        ...


@dataclass(frozen=True, eq=False)
class LearnedOptimizer:
    """Learned-optimizer design: how theta looks, and the optax transformation it stands for.

    `l2o.testing.check_optimizer` checks that it behaves as optax and meta-training expect.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> import l2o
    >>> import optax
    >>> lopt = l2o.LearnedOptimizer(
    ...     name="learned_rate",
    ...     init=lambda key: {"log_rate": jnp.log(0.1)},
    ...     transform=lambda theta, *, horizon=None: optax.with_extra_args_support(
    ...         optax.sgd(jnp.exp(theta["log_rate"]))
    ...     ),
    ... )
    >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
    >>> params = {"x": jnp.ones(2)}
    >>> updates, state = tx.update({"x": jnp.ones(2)}, tx.init(params), params)
    >>> print(optax.apply_updates(params, updates)["x"])
    [0.9 0.9]

    Attributes:
        name: Name of the design, as in `l2o list` and in release files.
        init: Function `(key) -> theta` that draws initial meta-parameters.
        transform: Function `(theta, *, horizon=None) -> optax.GradientTransformationExtraArgs`; its
            `update` needs `params` and takes the loss as `value=` (optax's own keyword).
        config: JSON-able keyword arguments that rebuild this design by its constructor.
    """

    name: str
    init: Callable[[Key], Theta]
    transform: TransformFn
    config: Mapping[str, Any] = field(default_factory=dict)


P = ParamSpec("P")
L = TypeVar("L", bound=LearnedOptimizer)


def design(constructor: Callable[P, L]) -> Callable[P, L]:
    """Decorate the constructor of a design, so that its arguments become the design's `config`.

    Release files store `config` and call the constructor with it. Arguments, defaults included, are
    recorded as the call gave them, so `config` cannot disagree with them. The design then takes
    the trees that people have, see `l2o.leaves.on_any_tree`.

    >>> import jax.numpy as jnp, l2o, optax
    >>> @l2o.design
    ... def learned_rate(start: float = 0.1) -> l2o.LearnedOptimizer:
    ...     def transform(theta, *, horizon=None):
    ...         return optax.with_extra_args_support(optax.sgd(theta["rate"]))
    ...
    ...     init = lambda key: {"rate": jnp.float32(start)}
    ...     return l2o.LearnedOptimizer("learned_rate", init, transform)
    >>> learned_rate().config
    {'start': 0.1}

    Args:
        constructor: Function of plain numbers, strings, booleans and lists of them that returns a
            `LearnedOptimizer`.
    """
    signature = inspect.signature(constructor)

    @functools.wraps(constructor)
    def construct(*args: P.args, **kwargs: P.kwargs) -> L:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        lopt = constructor(*args, **kwargs)

        def transform(
            theta: Theta, *, horizon: Horizon = None
        ) -> optax.GradientTransformationExtraArgs:
            return on_any_tree(lopt.transform(theta, horizon=horizon), lopt.name)

        return dataclasses.replace(lopt, transform=transform, config=given.arguments)

    return construct


def check_sizes(**sizes: int) -> None:
    """Raise a `ValueError` unless all are whole numbers of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise ValueError(f"`{name}` must be a whole number; got {size!r}. Try {name}=8.")
        if size < 1:
            raise ValueError(f"`{name}` must be at least 1; got {size}. Try {name}=8.")


def check_numbers(**numbers: float) -> None:
    """Raise a `ValueError` unless all are finite numbers."""
    for name, number in numbers.items():
        if not isinstance(number, Real) or isinstance(number, bool):
            raise ValueError(f"`{name}` must be a number; got {number!r}. Try {name}=0.001.")
        if not math.isfinite(number):
            raise ValueError(f"`{name}` must be finite; got {number}. Try {name}=0.001.")


State = TypeVar("State")


def require_state(state: Any, kind: type[State], design: str) -> State:
    """Return the state of an optimizer, or raise an error that tells where to get one.

    Args:
        state: State that `update` was given.
        kind: Type of the state.
        design: Name of the design that it is of.

    Raises:
        ValueError: If it is that of another optimizer.
    """
    if not isinstance(state, kind):
        raise ValueError(
            f"`state` must come from `init` of {design}; got {type(state).__name__}. Call "
            "tx.init(params)."
        )
    return state


def require_params(params: optax.Params | None, design: str) -> optax.Params:
    """Return `params`, or raise an error that tells the caller how to pass them.

    Args:
        params: Parameters that `update` was given.
        design: Name of the design that needs them.

    Raises:
        ValueError: If they are None.
    """
    if params is None:
        raise ValueError(
            f"`params` is needed by {design}; got None. "
            "Call `tx.update(grads, state, params, value=loss)`."
        )
    return params


def require_horizon(horizon: Horizon, design: str) -> int | jax.Array:
    """Return `horizon`, or raise an error that tells the caller how to pass it.

    Args:
        horizon: Number of training steps that `transform` was given.
        design: Name of the design that needs it.

    Raises:
        ValueError: If it is None, or a number that is not whole and at least 1.
    """
    if horizon is None:
        raise ValueError(
            f"`horizon` is needed by {design}, whose step size follows the progress of the run; "
            "got None. Pass the number of training steps, for instance horizon=1000."
        )
    if isinstance(horizon, Tracer):
        return horizon
    try:
        steps = int(horizon)
        is_good = steps == horizon and 1 <= steps < 2**31 and not isinstance(horizon, bool)
    except (TypeError, ValueError, OverflowError):  # text, NaN, infinity
        is_good = False
    if not is_good:
        raise ValueError(
            f"`horizon` must be a whole number of training steps, at least 1; got {horizon!r}. "
            "Try horizon=1000."
        )
    return horizon if isinstance(horizon, jax.Array) else int(horizon)


def require_value(value: Any, design: str) -> jax.Array:
    """Return the loss in float32, or raise an error that tells the caller how to pass it.

    Args:
        value: Loss that `update` was given.
        design: Name of the design that needs it.

    Raises:
        ValueError: If it is None.
    """
    if value is None:
        raise ValueError(
            f"`value` is needed by {design}, which follows the loss; got None. "
            "Call `tx.update(grads, state, params, value=loss)`; if you do, a wrapper around the "
            "optimizer drops it, as optax.lookahead does."
        )
    return jnp.asarray(value, jnp.float32)
