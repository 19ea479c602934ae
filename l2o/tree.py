"""Leaves of a tree as files and messages have them: their names, and their content without JAX."""

from typing import Any

import jax
import numpy as np


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name: `layers/0/w` for `tree["layers"][0]["w"]`.

    Raises:
        ValueError: if two leaves have the same name.
    """
    paths = jax.tree_util.tree_leaves_with_path(tree)
    leaves = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}
    if len(leaves) != len(paths):
        raise ValueError(
            "leaves must have one name each; got a/b twice. Rename the keys of the tree."
        )
    return leaves


def is_key(leaf: Any) -> bool:
    """Whether a leaf holds typed random keys; it needs a dtype, and no content."""
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_numpy(leaf: Any) -> np.ndarray:
    """The content of an array, or the words of typed keys."""
    return np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)


def from_numpy(content: np.ndarray, like: Any) -> jax.Array:
    """What `to_numpy` made from a leaf; `like` is one of its kind, with a dtype and a shape."""
    if not is_key(like):
        return jax.numpy.asarray(content)
    impl = []
    jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(jax.numpy.asarray(content), impl=impl[0])
