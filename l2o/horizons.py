"""Lengths of training runs: how they are drawn, grow in a curriculum, and end staggered."""

from collections.abc import Callable
from numbers import Integral
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from l2o.task import Key

State = TypeVar("State")


def horizons_of(horizon: int | tuple[int, int]) -> tuple[int, int]:
    """The shortest and the longest run of a number of steps, or a pair of them."""
    pair = horizon if isinstance(horizon, tuple | list) else (horizon, horizon)
    if len(pair) != 2 or not all(isinstance(steps, Integral) for steps in pair):
        raise ValueError(
            f"`horizon` must be a whole number, or a pair of them; got {horizon!r}. "
            "Try horizon=200, or horizon=(100, 1000)."
        )
    return int(pair[0]), int(pair[1])


def check_horizon(shortest: int, longest: int, window: int, *, allow_one: bool = False) -> None:
    """Raise a `ValueError` that says what to type unless runs are whole numbers of windows.

    A run has at least two windows or, with `allow_one`, at least one.
    """
    if window < 1:
        raise ValueError(f"`window` must be at least 1; got {window}. Try window=50.")
    if shortest > longest:
        raise ValueError(
            f"`horizon` must go from short to long; got {shortest} to {longest}. "
            f"Try horizon={longest} {shortest}."
        )
    if shortest < window or (shortest == window and not allow_one):
        ends = (4 * window,) if shortest == longest else (2 * window, max(longest, 4 * window))
        raise ValueError(
            f"`horizon` must be above `window`; got horizon={shortest}, window={window}. "
            f"Try horizon={' '.join(map(str, ends))}."
        )
    for steps in (shortest, longest):
        if steps % window:
            raise ValueError(
                f"`horizon` must be a multiple of `window`; got horizon={steps}, window={window}. "
                f"Try horizon={-(-steps // window) * window}."
            )


def check_curriculum(curriculum: int, shortest: int, longest: int, window: int) -> None:
    """Raise a `ValueError` that says what to type unless the longest run can grow."""
    if not isinstance(curriculum, Integral) or curriculum < 0:
        raise ValueError(
            f"`curriculum` must be a number of outer steps, not negative; got {curriculum!r}. "
            "Try curriculum=300, or 0 for none."
        )
    if curriculum and shortest == longest:
        raise ValueError(
            f"`horizon` must be a range for a curriculum; got {longest} alone. "
            f"Try horizon={2 * window} {max(longest, 4 * window)}, or curriculum=0."
        )


def draw_horizon(key: Key, shortest: int, longest: int | jax.Array, window: int) -> jax.Array:
    """Draw the number of inner steps of a run, log-uniform in whole windows; an int32 scalar."""
    if isinstance(longest, int) and shortest == longest:
        return jnp.int32(longest)
    low, high = jnp.log(shortest / window), jnp.log(longest / window + 1.0)
    num_windows = jnp.exp(jax.random.uniform(key, minval=low, maxval=high))
    return window * jnp.minimum(num_windows.astype(jnp.int32), longest // window)


def grown_horizon(progress: jax.Array, shortest: int, longest: int, window: int) -> jax.Array:
    """Compute how long the longest run of a curriculum is, geometric in its progress.

    Args:
        progress: Part of the curriculum that is over; it ends at 1.
        shortest: Number of inner steps of the shortest run.
        longest: Number of inner steps of the longest run, when the curriculum is over.
        window: Number of inner steps of a window, which divides both.

    Returns:
        Whole windows, an int32 scalar.
    """
    most = shortest * (longest / shortest) ** jnp.minimum(progress, 1.0)
    # A little more, as rounding must not take a whole window from the longest run.
    return window * jnp.floor(most / window + 1e-3).astype(jnp.int32)


def staggered_start(
    begin: Callable[..., State], shortest: int, longest: int | jax.Array, window: int
) -> Callable[..., State]:
    """Make `(key, is_cut, *arguments) -> state`, which starts a run of a drawn number of steps.

    Where `is_cut`, the run is cut to a random number of windows. That is due to the first run of a
    member, so that runs end staggered.

    Args:
        begin: Function `(key, horizon, *arguments) -> state` that starts a run of that many steps.
        shortest: Number of inner steps of the shortest run.
        longest: Number of inner steps of the longest run; it may be traced.
        window: Number of inner steps of a window, which divides both.
    """

    def start(key: Key, is_cut: bool | jax.Array, *arguments: Any) -> State:
        k_horizon, k_stage, k_start = jax.random.split(key, 3)
        num_steps = draw_horizon(k_horizon, shortest, longest, window)
        share = jax.random.uniform(k_stage)  # `randint` draws three times
        num_windows = 1 + (share * (num_steps // window)).astype(jnp.int32)
        num_steps = jnp.where(is_cut, window * num_windows, num_steps)
        return begin(k_start, num_steps, *arguments)

    return start
