"""What parameters, gradients and losses are in other people's programs.

A design sees trees of real floating-point numbers and a scalar loss. Models also hold functions and
Nones, are frozen in part or complex; gradients overflow, and losses come with an axis of one. What
can be taken is taken here, at the edge of every design; the rest is an error of one line.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

LARGEST = 1e15
"""Numbers of a gradient beyond it count as zero, as do those that are not finite: the square of one
overflows in float32, and an average that has been infinite once stays so."""


def on_any_tree(
    tx: optax.GradientTransformationExtraArgs, design: str
) -> optax.GradientTransformationExtraArgs:
    """Let an optimizer of trees of real numbers train the trees that people have.

    - Leaves of the parameters that are no numbers, such as functions, are left out, and get an
      update of None. So are those whose gradient is None; in the state they count as having a
      gradient of zero.
    - Numbers of a gradient that are not finite or beyond 1e15 count as zero.
    - A loss of one element is a scalar.

    Args:
        tx: Optimizer; a `value` that it is given is a scalar.
        design: Name of its design, for errors.

    Returns:
        An optimizer whose `update` raises a `ValueError` for complex leaves, and for a loss of more
        or fewer elements than one.
    """

    def init(params: optax.Params) -> optax.OptState:
        check_real(params, "params", design)
        return tx.init(numbers_of(params))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        check_real(updates, "updates", design)
        if extra_args.get("value") is not None:
            extra_args["value"] = scalar(extra_args["value"], design)
        grads, treedef = jax.tree.flatten(updates, is_leaf=is_none)
        numbers = None
        if params is not None:
            check_real(params, "params", design)
            trained = [numbers_of(p) for p in treedef.flatten_up_to(params)]
            grads = [
                zeros_like(p) if is_none(g) else g for g, p in zip(grads, trained, strict=True)
            ]
            numbers = treedef.unflatten(trained)
        bounded = jax.tree.map(without_extremes, treedef.unflatten(grads))
        steps, state = tx.update(bounded, state, numbers, **extra_args)
        dropped = lambda g, step: None if is_none(g) else step
        return jax.tree.map(dropped, updates, steps, is_leaf=is_none), state

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def is_none(x: Any) -> bool:
    """Tell whether a leaf is None, which JAX takes for a tree without leaves."""
    return x is None


def is_number(x: Any) -> bool:
    """Tell whether a leaf is an array of numbers or a number."""
    return isinstance(x, int | float | complex) or (
        hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.number)
    )


def numbers_of(tree: Any) -> Any:
    """Put None in the place of leaves that are no numbers."""
    return jax.tree.map(lambda x: x if is_number(x) else None, tree)


def zeros_like(tree: Any) -> Any:
    """Zeros of the shapes and dtypes of a tree of numbers."""
    return jax.tree.map(jnp.zeros_like, tree)


def check_real(tree: Any, name: str, design: str) -> None:
    """Raise a `ValueError` that names the leaf if a tree has complex numbers."""
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        if is_number(x) and jnp.issubdtype(jnp.result_type(x), jnp.complexfloating):
            raise ValueError(
                f"`{name}` must be real; got complex numbers at {name}"
                f"{jax.tree_util.keystr(path)}, of which {design} would see the real parts alone. "
                "Try optax.contrib.split_real_and_imaginary(tx)."
            )


def scalar(value: Any, design: str) -> jax.Array:
    """Return a loss of one element as a scalar of its dtype.

    Raises:
        ValueError: If it has more or fewer elements.
    """
    if jnp.size(value) != 1:
        raise ValueError(
            f"`value` must be a scalar, the loss of the step; {design} got an array of shape "
            f"{jnp.shape(value)}. Try value=loss.mean()."
        )
    return jnp.reshape(jnp.asarray(value), ())


def without_extremes(g: Any) -> jax.Array:
    """Put zero in the place of numbers that are not finite or beyond `LARGEST`."""
    g = jnp.asarray(g)
    if not jnp.issubdtype(g.dtype, jnp.floating):
        return g
    largest = min(LARGEST, float(jnp.finfo(g.dtype).max))
    return jnp.where(jnp.abs(g) <= largest, g, jnp.zeros_like(g))
