"""Layers that a model keeps in one array, and optimizers that tell them apart.

Scanned layers (`flax.nnx.scan`, `flax.linen.scan`) have one array for the matrices of all of them.
A design sees a tensor at a time, and its scales and statistics are those of the tensor: to it all
layers would be one. `stacked` says along which axis they lie, and each is updated as if it were an
array of its own.
"""

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from l2o.leaves import is_none, is_number, require_transformation


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["axis"])
@dataclass(frozen=True)
class Stack:
    """An array that holds a tensor for each layer.

    Attributes:
        values: The array.
        axis: Axis along which layers lie, not negative.
    """

    values: Any
    axis: int


def is_stack(x: Any) -> bool:
    """Tell whether a tree is a `Stack`."""
    return isinstance(x, Stack)


def stacked(
    tx: optax.GradientTransformation, axes: Mapping[str, int]
) -> optax.GradientTransformationExtraArgs:
    """Tell an optimizer which arrays of a model hold a tensor for each layer.

    Updates are those of a network whose layers have arrays of their own. The state looks as it
    does without: an accumulator has its parameter's shape, and can be sharded like it.

    >>> import jax.numpy as jnp, l2o
    >>> params = {"layers": {"kernel": jnp.ones((12, 8, 8))}, "head": jnp.ones((8, 2))}
    >>> tx = l2o.stacked(l2o.optimizer("digits", horizon=100), {"layers": 0})
    >>> updates, state = tx.update(params, tx.init(params), params, value=1.0)
    >>> updates["layers"]["kernel"].shape
    (12, 8, 8)

    Args:
        tx: Optimizer of l2o, or a chain with one in it. Others go on to take an array for one
            tensor: Adam's updates are the same either way, those of optax.lamb are not.
        axes: Axis of the layers by path, for every array at that path or below it: "layers",
            "decoder/layers", or "" for all.

    Returns:
        An optimizer whose `init` raises a `ValueError` if there is nothing at a path, or an array
        there has no such axis.

    Raises:
        ValueError: If an axis is no integer, or `tx` no optax transformation.
    """
    axes = checked(axes)
    inner = require_transformation(tx, "tx")

    def tagged(tree: Any) -> Any:
        def tag(path: Any, x: Any) -> Any:
            axis = axis_of(path_of(path), axes)
            if axis is None or not is_number(x):
                return x
            if not -jnp.ndim(x) <= axis < jnp.ndim(x):
                raise ValueError(
                    f"`stacked` must be an axis of each array; got {axis} for {path_of(path)} of "
                    f"shape {jnp.shape(x)}. Name the paths of what is stacked alone."
                )
            return Stack(x, axis % jnp.ndim(x))

        return jax.tree.map_with_path(tag, tree)

    def init(params: optax.Params) -> optax.OptState:
        check_paths(axes, params)
        return untagged(inner.init(tagged(params)))

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        like = updates if params is None else params
        state = with_stacks_of(lambda tree: inner.init(tagged(tree)), state, updates, like)
        updates, state = inner.update(tagged(updates), state, tagged(params), **extra_args)
        return untagged(updates), untagged(state)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def with_stacks_of(
    init: Callable[[optax.Params], optax.OptState],
    state: optax.OptState,
    grads: optax.Updates,
    params: optax.Params,
) -> optax.OptState:
    """Put stacks into a state where `init` has them, which saw all parameters or the trained ones.

    Raises:
        ValueError: If the state is of other parameters.
    """
    leaves = jax.tree.leaves(state)
    trained = jax.tree.map(lambda g, p: None if g is None else p, grads, params, is_leaf=is_none)
    for tree in (params, trained):
        structure = jax.tree.structure(jax.eval_shape(lambda tree=tree: init(tree)))
        if structure.num_leaves == len(leaves):
            return structure.unflatten(leaves)
    raise ValueError(
        "`state` must come from `init` of the parameters, or of those that have gradients; got one "
        "of others. Call tx.init(params)."
    )


def untagged(tree: Any) -> Any:
    """Put arrays in the place of stacks."""
    return jax.tree.map(lambda x: x.values if is_stack(x) else x, tree, is_leaf=is_stack)


def path_of(path: Any) -> str:
    """The path of a leaf as users write it, `layers/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def axis_of(path: str, axes: Mapping[str, int]) -> int | None:
    """The axis of what is at a path: that of the longest path in `axes` which leads there."""
    leads = [prefix for prefix in axes if f"{path}/".startswith(f"{prefix}/" if prefix else "")]
    return axes[max(leads, key=len)] if leads else None


def checked(axes: Mapping[str, int]) -> dict[str, int]:
    """Raise a `ValueError` unless these are integers by paths, and return them."""
    is_axis = lambda axis: hasattr(axis, "__index__") and not isinstance(axis, bool)
    items = axes.items() if isinstance(axes, Mapping) else [("", axes)]
    for path, axis in items:
        if not isinstance(axes, Mapping) or not isinstance(path, str) or not is_axis(axis):
            raise ValueError(
                f"`stacked` must be an integer for each path; got {axes!r}. Try {{'layers': 0}}."
            )
    return {path.strip("/"): operator.index(axis) for path, axis in items}


def check_paths(axes: Mapping[str, int], params: optax.Params) -> None:
    """Raise a `ValueError` unless there are parameters at each of these paths."""
    paths = [path_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    for prefix, axis in axes.items():
        if paths and all(axis_of(path, {prefix: axis}) is None for path in paths):
            known = ", ".join(dict.fromkeys(path.partition("/")[0] for path in paths))
            raise ValueError(
                f"`stacked` must name paths of parameters; got {prefix}, at which there is "
                f"nothing. Try one that begins with {known}."
            )
