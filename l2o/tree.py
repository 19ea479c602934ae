"""Leaves of pytrees as files and messages have them: their names, and their content."""

from typing import Any, TypeVar

import jax
import numpy as np

Tree = TypeVar("Tree")


def named_leaves(tree: Any) -> dict[str, Any]:
    """Name the leaves of a tree: `layers/0/w` for `tree["layers"][0]["w"]`.

    >>> named_leaves({"layers": [{"w": 1}, {"w": 2}]})
    {'layers/0/w': 1, 'layers/1/w': 2}

    Raises:
        ValueError: If two leaves have the same name.
    """
    paths = jax.tree_util.tree_leaves_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
    if len(leaves) != len(paths):
        raise ValueError(
            "leaves must have one name each; got a/b twice. Rename the keys of the tree."
        )
    return leaves


def with_dtypes_of(like: Tree, tree: Tree) -> Tree:
    """Cast the arrays of a tree to the dtypes that they have in another of its structure."""
    cast = lambda x, y: y if x.dtype == y.dtype else y.astype(x.dtype)
    return jax.tree.map(cast, like, tree)


def is_key(leaf: Any) -> bool:
    """Whether a leaf holds typed random keys; it needs a dtype, and no content."""
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_numpy(leaf: Any) -> np.ndarray:
    """Take the content of an array, or the words of typed keys."""
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def from_numpy(content: np.ndarray, like: Any) -> jax.Array:
    """Make the array or typed keys from which `to_numpy` made its result.

    Args:
        content: Result of `to_numpy`.
        like: Anything with the dtype and shape of the leaf.
    """
    array = jax.numpy.asarray(content)
    return wrap_key_data(array, like) if is_key(like) else array


def wrap_key_data(words: jax.Array, like: Any) -> jax.Array:
    """Make typed keys from their words.

    Args:
        words: Result of `jax.random.key_data`.
        like: Anything with the dtype and shape of the keys.
    """
    impl = []
    jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(words, impl=impl[0])
