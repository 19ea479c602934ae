"""Theta in two parts: what is meta-trained, and what stays as it is."""

import fnmatch
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from l2o.learned_optimizer import Theta
from l2o.tree import named_leaves

Merge = Callable[[jax.Array], Theta]
"""From the part that is meta-trained to the whole theta."""


def freeze(theta: Theta, patterns: Sequence[str]) -> tuple[jax.Array, Merge]:
    """The part of theta that is meta-trained, as one vector, and the way back to the whole.

    Estimators, meta-optimizers and strategies see that vector alone, so what is frozen gets neither
    noise nor weight decay, and what they do takes one kernel instead of one for each leaf.

    Args:
        theta: any tree.
        patterns: shell patterns of the names of frozen leaves, such as `layers/0/*`.

    Returns:
        Shape (trained meta-parameters,), and a function from such a vector to a tree like theta,
        of its dtypes.

    Raises:
        ValueError: if a leaf is not floating point, a pattern fits no leaf, or nothing is left to
            train.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(theta):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(
                f"`theta` must be floating point throughout; got {jnp.result_type(leaf)} at "
                f"theta{jax.tree_util.keystr(path)}. Cast it with jnp.float32."
            )
    if not patterns:
        return ravel_pytree(theta)
    leaves = named_leaves(theta)
    for pattern in patterns:
        if not fnmatch.filter(leaves, pattern):
            raise ValueError(
                f"`freeze` must fit the name of a leaf of theta; got {pattern}. "
                f"Try {', '.join(leaves)}."
            )
    trained = {
        name: leaf
        for name, leaf in leaves.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    if not trained:
        raise ValueError(
            f"`freeze` must leave something to train; got {' '.join(patterns)}. Freeze fewer of "
            f"{', '.join(leaves)}."
        )
    flat, unravel = ravel_pytree(trained)

    def merge(trained: jax.Array) -> Theta:
        return jax.tree.structure(theta).unflatten((leaves | unravel(trained)).values())

    return flat, merge
