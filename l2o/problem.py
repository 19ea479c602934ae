"""One inner training run, a window at a time: the seam between tasks and estimators."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.task import Data, Instance, Key, Task, check_task


class InnerState(NamedTuple):
    """An inner training run between two windows.

    Attributes:
        instance: the sampled problem.
        params: its parameters.
        opt_state: state of the optimizer that trains them.
        step: inner steps taken since the start of the run, int32 scalar.
        horizon: inner steps of the whole run, int32 scalar.
    """

    instance: Instance
    params: optax.Params
    opt_state: optax.OptState
    step: jax.Array
    horizon: jax.Array


class Window(NamedTuple):
    """What happened in a window; every field has shape (window,).

    Attributes:
        loss: contribution of each step to the meta-loss.
        done: whether the run ended with this step.
        mask: False at steps that trained nothing and do not count.
        finite: whether the training loss itself was finite.
    """

    loss: jax.Array
    done: jax.Array
    mask: jax.Array
    finite: jax.Array


@dataclass(frozen=True, eq=False)
class Problem:
    """What estimators see: a training run that resets itself, and nothing else.

    Attributes:
        name: prefix of its metrics.
        init: `(key, theta) -> InnerState`, a run at a random stage, so that runs end staggered.
        unroll: `(key, theta, state, data) -> (state, window)`: `window` steps of training with the
            optimizer that theta stands for; a run at its horizon starts anew. The instance,
            step and horizon that come out depend on the key and the state alone, so members
            of an antithetic pair keep them in common.
        window: number of steps of one unroll.
        data: what `unroll` takes as `data`, an argument of the compiled program.
    """

    name: str
    init: Callable[[Key, Theta], InnerState]
    unroll: Callable[[Key, Theta, InnerState, Data], tuple[InnerState, Window]]
    window: int
    data: Data = ()


MetaLoss = Literal["mean", "log"]


def capped(loss: jax.Array, cap: float) -> jax.Array:
    """The loss, with a diverged one (NaN or above the cap) counted as `cap`."""
    return jnp.where(jnp.isnan(loss), cap, jnp.minimum(loss, cap))


def inner_problem(
    task: Task,
    lopt: LearnedOptimizer,
    *,
    horizon: int | tuple[int, int],
    window: int,
    meta_loss: MetaLoss = "mean",
) -> Problem:
    """Training runs of `task` under the learned optimizer, as a problem for estimators.

    Resets happen between windows. The first run of a member is cut to a random number of windows
    (and its optimizer told so), after which ends are spread evenly over time.

    Args:
        horizon: inner steps of a run; a pair (shortest, longest) draws it log-uniformly for each
            run. Multiples of `window`.
        window: inner steps of one unroll.
        meta_loss: "mean" is the training loss of each step, before its update, up to the task's
            cap; "log" is ln(loss + 1e-3) of the same, in which the end of a run weighs as much
            as its start. It is for losses that are not negative; one below zero counts as zero.

    Raises:
        ValueError: if the task is malformed or `horizon` and `window` do not fit.
    """
    check_task(task)
    shortest, longest = (horizon, horizon) if isinstance(horizon, int) else horizon
    check_horizon(shortest, longest, window)
    log_windows = jnp.log(shortest / window), jnp.log(longest / window + 1.0)

    def draw_horizon(key: Key) -> jax.Array:
        if shortest == longest:
            return jnp.int32(longest)
        num_windows = jnp.exp(jax.random.uniform(key, minval=log_windows[0], maxval=log_windows[1]))
        return window * jnp.minimum(num_windows.astype(jnp.int32), longest // window)

    def start(key: Key, theta: Theta, num_steps: jax.Array) -> InnerState:
        k_instance, k_params = jax.random.split(key)
        instance = task.sample(k_instance)
        params = task.init(k_params, instance)
        return InnerState(
            instance=instance,
            params=params,
            opt_state=lopt.transform(theta, horizon=num_steps).init(params),
            step=jnp.int32(0),
            horizon=num_steps,
        )

    def init(key: Key, theta: Theta) -> InnerState:
        k_horizon, k_stage, k_start = jax.random.split(key, 3)
        num_windows = draw_horizon(k_horizon) // window
        num_windows = jax.random.randint(k_stage, (), 1, num_windows + 1)
        return start(k_start, theta, window * num_windows)

    def unroll(key: Key, theta: Theta, state: InnerState, data: Data) -> tuple[InnerState, Window]:
        k_batches, k_horizon, k_start = jax.random.split(key, 3)
        tx = lopt.transform(theta, horizon=state.horizon)

        def step(carry, k_batch):
            params, opt_state = carry
            batch = task.batch(k_batch, state.instance, data, "train")
            loss, grads = jax.value_and_grad(task.loss)(params, batch, state.instance)
            updates, opt_state = tx.update(grads, opt_state, params, value=loss)
            return (optax.apply_updates(params, updates), opt_state), loss

        (params, opt_state), raw = jax.lax.scan(
            step, (state.params, state.opt_state), jax.random.split(k_batches, window)
        )
        loss = capped(raw, task.loss_cap)
        count = state.step + window
        done = count >= state.horizon
        trained = state._replace(params=params, opt_state=opt_state, step=count)
        fresh = start(k_start, theta, draw_horizon(k_horizon))
        return jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, trained), Window(
            loss=jnp.log(jnp.maximum(loss, 0.0) + 1e-3) if meta_loss == "log" else loss,
            done=jnp.arange(1, window + 1) + state.step >= state.horizon,
            mask=jnp.ones(window, bool),
            finite=jnp.isfinite(raw),
        )

    return Problem(name=task.name, init=init, unroll=unroll, window=window, data=task.data)


def check_horizon(shortest: int, longest: int, window: int) -> None:
    """Raises a `ValueError` that says what to type unless runs are whole numbers of windows."""
    if window < 1:
        raise ValueError(f"`window` must be at least 1; got {window}. Try window=50.")
    if shortest > longest:
        raise ValueError(
            f"`horizon` must go from short to long; got {shortest} to {longest}. "
            f"Try horizon={longest} {shortest}."
        )
    if shortest <= window:
        raise ValueError(
            f"`horizon` must be above `window`; got horizon={shortest}, window={window}. "
            f"Try horizon={4 * window}."
        )
    for steps in (shortest, longest):
        if steps % window:
            raise ValueError(
                f"`horizon` must be a multiple of `window`; got horizon={steps}, window={window}. "
                f"Try horizon={-(-steps // window) * window}."
            )
