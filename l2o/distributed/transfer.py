"""Trees of arrays between process 0, every process and the devices of all.

All processes call `broadcast`, `place` and `gather` at the same point. With one process nothing is
sent.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from l2o.tree import from_numpy, is_key, to_numpy, wrap_key_data

Tree = TypeVar("Tree")


def broadcast(tree: Tree) -> Tree:
    """Send the tree of process 0 to every process, to the bit.

    Args:
        tree: Pytree of arrays or typed keys, of the same shapes and dtypes in every process.
    """
    if jax.process_count() == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    arrays = [to_numpy(leaf) for leaf in leaves]
    # As bytes, because a sum, which is how JAX sends it, turns -0.0 into 0.0.
    mine = np.frombuffer(b"".join(array.tobytes() for array in arrays), np.uint8)
    content = np.asarray(multihost_utils.broadcast_one_to_all(mine)).tobytes()
    received, start = [], 0
    for array, leaf in zip(arrays, leaves, strict=True):
        part = content[start : start + array.nbytes]
        start += array.nbytes
        received.append(from_numpy(np.frombuffer(part, array.dtype).reshape(array.shape), leaf))
    return structure.unflatten(received)


def place(tree: Tree, shardings: Tree) -> Tree:
    """Place a tree on the devices of all processes, as a compiled program takes it.

    Args:
        tree: Pytree that every process has whole, NumPy arrays among it, or that such a program
            returned.
        shardings: Pytree with a sharding for each leaf, None where the program does not use it.
    """
    return jax.tree.map(_place, tree, shardings)


def gather(tree: Tree) -> Tree:
    """Gather what is spread over the devices of all processes, whole in every process.

    One leaf after the other, each of which every device must have room for.
    """
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(_gather, tree)


def local(tree: Tree) -> Tree:
    """Take what every device holds whole, such as theta, as arrays of this process alone.

    Such arrays outlive `processes.disconnect`. What is spread over devices stays as it is. Nothing
    is sent and nothing is copied.
    """
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(_local, tree)


def _place(leaf: jax.Array | np.ndarray, sharding: Sharding | None) -> jax.Array:
    if not isinstance(leaf, jax.Array):
        leaf = jnp.asarray(leaf)
    if sharding is None or leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
        return leaf
    if is_key(leaf):
        data = _place(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    if not leaf.is_fully_addressable:
        return jax.jit(_same, out_shardings=sharding)(leaf)
    # Through the host: `device_put` would compile a program for each shape. Each part is a copy,
    # because programs are given their state to overwrite.
    content = np.asarray(leaf)
    part = lambda index: np.array(content[index])
    return jax.make_array_from_callback(content.shape, sharding, part)


def _same(leaf: jax.Array) -> jax.Array:
    return leaf  # one function, so that it compiles once


def _local(leaf: jax.Array) -> jax.Array:
    if leaf.is_fully_addressable or not leaf.is_fully_replicated:
        return leaf
    if is_key(leaf):
        return wrap_key_data(_local(jax.random.key_data(leaf)), leaf)
    return leaf.addressable_data(0)


def _gather(leaf: jax.Array) -> jax.Array:
    data = jax.random.key_data(leaf) if is_key(leaf) else leaf
    whole = (
        data if data.is_fully_replicated else multihost_utils.process_allgather(data, tiled=True)
    )
    return from_numpy(np.asarray(whole), leaf)
