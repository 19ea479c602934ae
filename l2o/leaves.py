"""What parameters, gradients and losses are in other people's programs.

A design sees trees of real floating-point numbers and a scalar loss. Models also hold functions and
Nones, are frozen in part or complex; gradients overflow, and losses come with an axis of one. What
can be taken is taken here, at the edge of every design; the rest is an error of one line.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

LARGEST = 1e15
"""Numbers of a gradient beyond it count as zero, as do those that are not finite: sums of squares
over a tensor overflow in float32 not far beyond it, and an average that was infinite stays so."""


def require_transformation(tx: Any, argument: str) -> optax.GradientTransformationExtraArgs:
    """Return an optax transformation that takes a loss, or raise a `ValueError`.

    Args:
        tx: What was given as a transformation.
        argument: Argument that it was given as, for the message.
    """
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        name = getattr(tx, "__name__", None)
        got = f"the {type(tx).__name__} {name}" if name else repr(tx)[:60]
        raise ValueError(
            f"`{argument}` must be an optax transformation; got {got}. Try optax.adam(1e-3), or "
            'l2o.optimizer("digits", horizon=1000).'
        )
    if isinstance(tx, optax.MultiSteps):  # it hands `value` on, though its type does not say so
        return optax.GradientTransformationExtraArgs(tx.init, tx.update)  # pyright: ignore[reportArgumentType]
    return optax.with_extra_args_support(tx)


def on_any_tree(
    tx: optax.GradientTransformationExtraArgs, design: str, *, sees_extremes: bool = False
) -> optax.GradientTransformationExtraArgs:
    """Let an optimizer of trees of real numbers train the trees that people have.

    - Leaves of the parameters that are no numbers, such as functions, are left out. They and those
      whose gradient is None get an update of None, as from `optax.adamw`; `equinox.apply_updates`
      applies such updates, `optax.apply_updates` does not.
    - A number whose gradient is None has a gradient of zero to the state, if `init` saw it.
    - Numbers of a gradient that are not finite or beyond 1e15 count as zero.
    - A loss of one element is a scalar.

    Args:
        tx: Optimizer; a `value` that it is given is a scalar.
        design: Name of its design, for errors.
        sees_extremes: Whether gradients are left to `tx` as they are.

    Returns:
        An optimizer whose `update` raises a `ValueError` for complex leaves, and for a loss of more
        or fewer elements than one.
    """

    def init(params: optax.Params) -> optax.OptState:
        check_real(params, "params", design)
        with jax.numpy_rank_promotion("allow"):  # networks have biases, whatever a user forbids
            return tx.init(numbers_of(params))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if updates is None:
            raise ValueError(
                f"`updates` must be a tree of gradients; {design} got None. Try jax.grad."
            )
        check_real(updates, "updates", design)
        if extra_args.get("value") is not None:
            extra_args["value"] = scalar(extra_args["value"], design)
        grads, treedef = jax.tree.flatten(updates, is_leaf=is_none)
        clean = (lambda g: g) if sees_extremes else without_extremes
        grads = [clean(g) if is_number(g) else None for g in grads]
        with jax.numpy_rank_promotion("allow"):
            if params is not None and any(g is None for g in grads):
                grads, params = with_frozen(tx, treedef, grads, params, state)
            steps, state = tx.update(treedef.unflatten(grads), state, params, **extra_args)
        dropped = lambda g, step: step if is_number(g) else None
        return jax.tree.map(dropped, updates, steps, is_leaf=is_none), state

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def with_frozen(
    tx: optax.GradientTransformationExtraArgs,
    treedef: Any,
    grads: list[Any],
    params: optax.Params,
    state: optax.OptState,
) -> tuple[list[Any], optax.Params]:
    """Give numbers without a gradient a gradient of zero, or leave them out as `init` did.

    What `init` saw shows in the structure of the state: all numbers, arrays alone, or only what
    has a gradient.

    Args:
        tx: Optimizer of trees of numbers.
        treedef: Structure of the gradients, in which None is a leaf.
        grads: Leaves of the gradients; None for what has none.
        params: Parameters.
        state: State of `tx`.

    Returns:
        Leaves of the gradients, in which a zero tree may stand for None, and the parameters.

    Raises:
        ValueError: If the state is of other parameters.
    """
    given = treedef.flatten_up_to(params)
    for is_seen in (is_number, is_array, lambda x: False):  # of what has no gradient
        trained = [
            numbers_of(p, is_seen if g is None else is_number)
            for g, p in zip(grads, given, strict=True)
        ]
        tree = treedef.unflatten(trained)
        if jax.tree.structure(jax.eval_shape(tx.init, tree)) == jax.tree.structure(state):
            zero = lambda g, p: jax.tree.map(jnp.zeros_like, p) if g is None else g
            return [zero(g, p) for g, p in zip(grads, trained, strict=True)], tree
    raise ValueError(
        "`state` must come from `init` of the parameters, or of those that have gradients; got one "
        "of others. Call tx.init(params)."
    )


def is_none(x: Any) -> bool:
    """Tell whether a leaf is None, which JAX takes for a tree without leaves."""
    return x is None


def is_array(x: Any) -> bool:
    """Tell whether a leaf is an array of numbers; random keys and booleans are none."""
    return isinstance(x, jax.Array | np.ndarray | np.generic) and jnp.issubdtype(
        x.dtype, jnp.number
    )


def is_number(x: Any) -> bool:
    """Tell whether a leaf is an array of numbers or a number of Python's."""
    return is_array(x) or (isinstance(x, int | float | complex) and not isinstance(x, bool))


def numbers_of(tree: Any, is_kept: Callable[[Any], bool] = is_number) -> Any:
    """Put None in the place of leaves that are no numbers, or not of those that are kept."""
    return jax.tree.map(lambda x: x if is_kept(x) else None, tree)


def check_real(tree: Any, name: str, design: str) -> None:
    """Raise a `ValueError` that names the leaf if a tree has complex numbers."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if is_number(x) and jnp.issubdtype(jnp.result_type(x), jnp.complexfloating):
            raise ValueError(
                f"`{name}` must be real; got complex numbers at {name}"
                f"{jax.tree_util.keystr(path)}, of which {design} would see the real parts alone. "
                "Keep real and imaginary parts apart, as optax.contrib.split_real_and_imaginary "
                "does for optimizers that do not need `value`."
            )


def scalar(value: Any, design: str) -> jax.Array:
    """Return a loss of one element as a scalar of its dtype.

    Raises:
        ValueError: If it has more or fewer elements, or is complex.
    """
    if jnp.size(value) != 1 or jnp.issubdtype(jnp.result_type(value), jnp.complexfloating):
        raise ValueError(
            f"`value` must be a scalar, the real loss of the step; {design} got "
            f"{jnp.result_type(value)} of shape {jnp.shape(value)}. Try value=loss.mean()."
        )
    return jnp.reshape(jnp.asarray(value), ())


def without_extremes(g: Any) -> jax.Array:
    """Put zero in the place of numbers that are not finite or beyond `LARGEST`."""
    g = jnp.asarray(g)
    if not jnp.issubdtype(g.dtype, jnp.floating):
        return g
    largest = min(LARGEST, float(jnp.finfo(g.dtype).max))
    kept = jnp.where(jnp.abs(g) <= largest, g, jnp.zeros((), g.dtype))
    # This changes no number. Without it XLA keeps what AdafacMLP reads in two passes, on CPUs.
    return jnp.clip(kept, -largest, largest)
