"""Comparison of trees, and failures in one line."""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from l2o.learned_optimizer import LearnedOptimizer

Tree = Any

T = TypeVar("T")


def difference_of(found: Tree, expected: Tree) -> str | None:
    """How structure, shapes or dtypes of two trees differ, in words."""
    left, right = (dict(jax.tree.leaves_with_path(tree)) for tree in (found, expected))
    kind = lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}"
    for path in {**left, **right}:
        one, other = (kind(side[path]) if path in side else "absent" for side in (left, right))
        if one != other:
            return f"{path_name(path) or 'it'} is {one}, not {other}"
    if jax.tree.structure(found) != jax.tree.structure(expected):
        return f"its structure is {jax.tree.structure(found)}"
    return None


def distance_of(found: Tree, expected: Tree, rtol: float) -> str | None:
    """Where two trees of equal structure are apart by more than a relative tolerance, in words."""
    for (path, x), y in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        x, y = (np.asarray(numbers(v), np.float64) for v in (x, y))
        atol = 0.1 * rtol * np.max(np.abs(y), initial=0.0, where=np.isfinite(y))
        if not np.allclose(x, y, rtol=rtol, atol=atol, equal_nan=True):
            error = np.max(np.abs(x - y))
            return f"{path_name(path) or 'it'} is off by {error:.2g}"
    return None


def is_equal(one: Tree, other: Tree) -> bool:
    """Whether all numbers of two trees of equal structure are the same, NaN among them."""
    pairs = zip(map(numbers, leaves(one)), map(numbers, leaves(other)), strict=True)
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in pairs)


def leaves(tree: Tree) -> list[jax.Array]:
    """The leaves of a tree as arrays."""
    return [jnp.asarray(x) for x in jax.tree.leaves(tree)]


def numbers(x: Any) -> np.ndarray:
    """An array as NumPy has it, also of PRNG keys."""
    is_key = jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def path_name(path: Any) -> str:
    """The path of a leaf as one would write it, `['w'][0]`."""
    return jax.tree_util.keystr(path)


def one_line(error: Exception) -> str:
    """The first line of an error, with its type."""
    return f"{type(error).__name__}: {error}".split("\n")[0]


def fail(got: str, advice: str, cause: Exception | None = None) -> NoReturn:
    """Raise an `AssertionError` in one line: what was found, and what to do."""
    raise AssertionError(" ".join(f"{got}. {advice}.".split())) from cause


def within(lopt: LearnedOptimizer, what: str, call: Callable[[], T]) -> T:
    """Call, and name what was called if it fails."""
    try:
        return call()
    except AssertionError:
        raise
    except Exception as error:
        fail(f"`lopt` {lopt.name}: {what} fails ({one_line(error)})", "See the error above", error)
