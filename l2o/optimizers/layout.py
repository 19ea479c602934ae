"""How the accumulators of all tensors lie in the state of an optimizer.

A rule has a pytree of accumulators for each tensor. The state has them the other way round: for
each array of a tensor's shape a tree like the parameters, as optax's states are, so that sharding
rules for parameters fit; and for what is of another shape, `Packed`, one flat array of all tensors.
Arrays of a `Stack` are of the shape of its array, and have its axis.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2o.stacks import Stack, is_stack


class Packed(NamedTuple):
    """Accumulators of a tensor that are not of its shape, such as means over its rows.

    A state keeps those of all tensors in one flat array, so that every other accumulator is of a
    parameter's shape and can be placed by that parameter's sharding; see `optax.tree.map_params`.

    Attributes:
        values: Arrays of any shapes and one dtype, the same number for every tensor; in a state,
            the flat array.
    """

    values: Any


def is_packed(x: Any) -> bool:
    """Tell whether a tree is `Packed`."""
    return isinstance(x, Packed)


def start(init_accumulators: Callable[[jax.Array], Any], p: Any) -> Any:
    """Accumulators of a tensor or of a stack of them, not yet trained."""
    if not is_stack(p):
        return init_accumulators(p)
    axes = axes_of(init_accumulators(jnp.zeros(1, jnp.float32)), p.axis)
    return in_stack(jax.vmap(init_accumulators, p.axis, axes)(p.values), p.axis)


def axes_of(accumulators: Any, axis: int) -> Any:
    """Where the axis of layers lies in accumulators: first in what is packed."""
    return jax.tree.map(lambda x: 0 if is_packed(x) else axis, accumulators, is_leaf=is_packed)


def in_stack(accumulators: Any, axis: int) -> Any:
    """Make stacks of arrays of a tensor's shape."""
    return jax.tree.map(
        lambda x: x if is_packed(x) else Stack(x, axis), accumulators, is_leaf=is_packed
    )


def join_leaves(treedef: Any, template: Any, leaves: Sequence[Any]) -> Any:
    """Turn the accumulators of each tensor into accumulators that are trees like the parameters.

    This is how optax lays out its states, and what sharding rules and Flax's NNX expect.

    Args:
        treedef: Structure of the parameters.
        template: Accumulators of any one tensor, for their structure.
        leaves: Accumulators of each tensor, all of that structure, with what is packed `raveled`.
    """
    kinds, structure = jax.tree.flatten(template, is_leaf=is_packed)
    rows = [structure.flatten_up_to(leaf) for leaf in leaves]
    columns = [[row[i] for row in rows] for i in range(len(kinds))]

    def join_column(kind: Any, column: Sequence[Any]) -> Any:
        if not is_packed(kind):
            return treedef.unflatten(column)
        nothing = jnp.zeros(0, jnp.result_type(*jax.tree.leaves(kind) or [jnp.float32]))
        return Packed(jnp.concatenate([nothing, *(packed.values for packed in column)]))

    return structure.unflatten(map(join_column, kinds, columns))


def split_leaves(
    treedef: Any, template: Any, accumulators: Any, shapes: Sequence[Any]
) -> list[Any]:
    """Take accumulators apart into those of each tensor; undoes `join_leaves`.

    Args:
        treedef: Structure of the parameters.
        template: Accumulators of any one tensor, for their structure.
        accumulators: What `join_leaves` has returned.
        shapes: Accumulators of each tensor, of which only the shapes matter.
    """
    structure = jax.tree.structure(template, is_leaf=is_packed)
    rows = [structure.flatten_up_to(shape) for shape in shapes]

    def split_column(i: int, tree: Any) -> Sequence[Any]:
        if not is_packed(tree):
            return treedef.flatten_up_to(tree)
        sizes = [sum(x.size for x in jax.tree.leaves(row[i])) for row in rows]
        return [Packed(piece) for piece in split(tree.values, sizes)]

    columns = [split_column(i, x) for i, x in enumerate(structure.flatten_up_to(accumulators))]
    if not columns:  # a rule that remembers nothing
        return list(shapes)
    return [structure.unflatten(row) for row in zip(*columns, strict=True)]


def check_accumulators(
    treedef: Any, template: Any, accumulators: Any, shapes: Sequence[Any], design: str
) -> None:
    """Raise a `ValueError` unless accumulators are those of such tensors; see `split_leaves`."""
    join = lambda found: join_leaves(treedef, template, [map_packed(raveled, x) for x in found])
    sizes = lambda tree: [jnp.shape(x) for x in jax.tree.leaves(tree)]
    if sizes(accumulators) != sizes(jax.eval_shape(join, list(shapes))):
        raise ValueError(
            f"`state` must come from `init` of {design} and these parameters; got one of others. "
            "Call tx.init(params)."
        )


def map_packed(function: Callable[..., Packed], accumulators: Any, *rest: Any) -> Any:
    """Apply a function to what is packed, and leave other accumulators as they are."""
    apply = lambda x, *others: function(x, *others) if is_packed(x) else x
    return jax.tree.map(apply, accumulators, *rest, is_leaf=is_packed)


def raveled(packed: Packed) -> Packed:
    """Put the arrays of a tensor into a flat one."""
    arrays = [jnp.ravel(replicated(x)) for x in jax.tree.leaves(packed)]
    return Packed(jnp.concatenate(arrays) if arrays else jnp.zeros(0, jnp.float32))


def unraveled(flat: Packed, shapes: Packed) -> Packed:
    """Take a flat array apart into arrays of such shapes; undoes `raveled`."""
    leaves, structure = jax.tree.flatten(shapes)
    pieces = split(flat.values, [x.size for x in leaves])
    return structure.unflatten(x.reshape(y.shape) for x, y in zip(pieces, leaves, strict=True))


def split(flat: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Cut a flat array into pieces of such sizes, none if there are none."""
    return jnp.split(flat, [*itertools.accumulate(sizes)])[:-1]


def sharding_of(x: Any) -> Any:
    """How an array's type says that it is sharded; nothing for one without explicit mesh axes."""
    return jax.typeof(x).sharding


def replicated(x: jax.Array) -> jax.Array:
    """Undo what explicit mesh axes say of an array, whose axes may then become one."""
    sharding = sharding_of(x)
    if not any(sharding.spec):
        return x
    return jax.sharding.reshard(x, sharding.update(spec=jax.P(*[None] * x.ndim)))
