"""Theta in two parts: what is meta-trained, and what stays as it is."""

import fnmatch
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from l2o.learned_optimizer import Theta
from l2o.tree import named_leaves

Unravel = Callable[[jax.Array], Theta]
"""From the vector of what is meta-trained to the whole theta."""


def freeze(theta: Theta, patterns: Sequence[str]) -> tuple[jax.Array, Unravel]:
    """Ravel the part of theta that is meta-trained: `ravel_pytree`, but for frozen leaves.

    Estimators, meta-optimizers and strategies see that vector alone, by way of
    `l2o.problem.map_theta`, so what is frozen gets neither noise nor weight decay.

    >>> import jax.numpy as jnp
    >>> theta = {"decay": jnp.array([0.9]), "rate": jnp.array([0.1, 0.2])}
    >>> vector, unravel = freeze(theta, ["decay"])
    >>> vector.shape
    (2,)
    >>> unravel(vector + 1.0)["decay"]
    Array([0.9], dtype=float32)

    Args:
        theta: Meta-parameters, a tree of any kind.
        patterns: Shell patterns of the names of frozen leaves, such as `layers/0/*`.

    Returns:
        Shape (trained meta-parameters,), and a function from such a vector to a tree like theta,
        of its dtypes.

    Raises:
        ValueError: If a leaf is not floating point, a pattern fits no leaf, or nothing is left to
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
    vector, unravel_trained = ravel_pytree(trained)

    def unravel(vector: jax.Array) -> Theta:
        named = leaves | unravel_trained(vector)
        return jax.tree.structure(theta).unflatten(named.values())

    return vector, unravel
