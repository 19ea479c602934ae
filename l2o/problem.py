"""Inner training runs, a window at a time: the seam between tasks and estimators."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o.horizons import (
    check_curriculum,
    check_horizon,
    grown_horizon,
    horizons_of,
    staggered_start,
)
from l2o.inner_step import batch_fraction, check_shrinks, inner_step
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.objective import (
    Best,
    Objective,
    as_cost,
    at_least_float32,
    check_objective,
    contributions,
    cost_on_batch,
    on_fresh_batches,
)
from l2o.task import Data, Instance, Key, Task, validate_task

MEAN_LOSS = Objective()
"""Mean training loss of a run."""


class InnerState(NamedTuple):
    """An inner training run between two windows.

    Attributes:
        instance: Sampled problem.
        params: Parameters of the problem.
        opt_state: State of the optimizer that trains the parameters.
        step: Number of inner steps since the start of the run, int32 scalar.
        horizon: Number of inner steps of the whole run, int32 scalar; 0 for a run that was
            reset.
        best: Lowest cost so far, a scalar, or () if the objective does not ask for it.
        age: Number of windows that this member has been trained for, over all its runs, an int32
            scalar; () without a curriculum.
    """

    instance: Instance
    params: optax.Params
    opt_state: optax.OptState
    step: jax.Array
    horizon: jax.Array
    best: Best = ()
    age: jax.Array | tuple[()] = ()


class Window(NamedTuple):
    """Costs of the steps of a window; every field has shape (window,).

    Attributes:
        loss: Contribution of each step to the meta-loss, which is their mean over a run.
        done: Whether the run ended with the step.
        mask: Whether the step counts; False where nothing was trained.
        finite: Whether the training loss itself was finite.
        diverged: Whether it was not, or above the task's cap.
    """

    loss: jax.Array
    done: jax.Array
    mask: jax.Array
    finite: jax.Array
    diverged: jax.Array


@dataclass(frozen=True, eq=False)
class Problem:
    """Training runs that follow each other, as estimators see them.

    Attributes:
        init: Function `(key, theta) -> InnerState`, a run that is cut to a random length, so that
            runs end staggered.
        start: Function `(key, theta) -> InnerState`, a run at its first step.
        unroll: Function `(key, theta, state, data) -> (state, window)`, `window` steps of training
            with the optimizer that theta stands for. Where the state is of a run at its horizon,
            they are the first of the next run, whose end comes at a random stage again if the one
            before was reset. The instance, step and horizon that come out depend on the key and
            the state alone, so members of an antithetic pair keep them in common.
        window: Number of inner steps of one unroll.
        horizon: Number of inner steps of the longest run.
        data: Data that `unroll` takes, an argument of the compiled program.
        is_differentiable: Whether backpropagation gives the gradient of the meta-loss.
        curriculum: Number of windows of a member over which its longest run grows.
    """

    init: Callable[[Key, Theta], InnerState]
    start: Callable[[Key, Theta], InnerState]
    unroll: Callable[[Key, Theta, InnerState, Data], tuple[InnerState, Window]]
    window: int
    horizon: int
    data: Data = field(default=(), repr=False)
    is_differentiable: bool = True
    curriculum: int = 0


def reset_run(state: InnerState) -> InnerState:
    """End a run here, whatever its horizon, so that the next window starts another."""
    return state._replace(horizon=jnp.zeros_like(state.horizon))


def map_theta(problem: Problem, unravel: Callable[[jax.Array], Theta]) -> Problem:
    """Make the problem a function of a vector that `unravel` makes theta of."""
    return replace(
        problem,
        init=lambda key, vector: problem.init(key, unravel(vector)),
        start=lambda key, vector: problem.start(key, unravel(vector)),
        unroll=lambda key, vector, state, data: problem.unroll(key, unravel(vector), state, data),
    )


def unroll_run(problem: Problem, key: Key, theta: Theta, data: Data) -> Window:
    """Train one whole run, from its first step to its last.

    Backpropagation through it keeps the states between windows and computes each window again.

    Returns:
        Fields of shape (windows of the longest run x window,); `mask` is False after a shorter
        run has ended.
    """
    k_start, k_windows = jax.random.split(key)
    num_windows = -(-problem.horizon // problem.window)

    def unroll(carry: tuple[InnerState, jax.Array], k_window: Key):
        state, is_over = carry
        state, window = problem.unroll(k_window, theta, state, data)
        ended = jnp.cumsum(window.done) > 0
        was_over = is_over | jnp.roll(ended, 1).at[0].set(False)
        return (state, is_over | ended[-1]), window._replace(mask=window.mask & ~was_over)

    start = (problem.start(k_start, theta), jnp.bool_(False))
    keys = jax.random.split(k_windows, num_windows)
    _, windows = jax.lax.scan(jax.checkpoint(unroll, prevent_cse=False), start, keys)
    return jax.tree.map(jnp.ravel, windows)


def inner_problem(
    task: Task,
    lopt: LearnedOptimizer,
    *,
    horizon: int | tuple[int, int],
    window: int,
    objective: Objective = MEAN_LOSS,
    curriculum: int = 0,
) -> Problem:
    """Make training runs of a task by a learned optimizer a problem for estimators.

    Runs are whole numbers of windows. The first run of a member, and one that follows a run that
    was reset, is cut to a random number of windows (and its optimizer told so), after which
    ends are spread evenly over time.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> problem = l2o.inner_problem(
    ...     rotated_quadratic(2), l2o.learnable_sgd(), horizon=(20, 40), window=10
    ... )
    >>> problem.horizon, problem.window
    (40, 10)

    Args:
        task: Task to train.
        lopt: Learned optimizer that trains it.
        horizon: Number of inner steps of a run, a multiple of `window`; a pair (shortest, longest)
            draws it log-uniformly for each run.
        window: Number of inner steps of one unroll.
        objective: Cost of a run; by default the mean of the training loss of each step, before its
            update, up to the task's cap.
        curriculum: Number of windows, and so of outer steps, over which the longest run grows
            geometrically from the shortest; 0 for all lengths from the start. Estimators that
            begin anew in every outer step do not take it.

    Raises:
        ValueError: If the task is malformed or lacks what the objective measures or the optimizer
            needs, `horizon` and `window` do not fit, or `curriculum` is negative or there is
            nothing to grow.
    """
    if not isinstance(lopt, LearnedOptimizer):
        name = getattr(lopt, "__name__", None) or repr(lopt)[:60]
        raise ValueError(
            f"`lopt` must be a LearnedOptimizer; got {type(lopt).__name__} {name}. "
            "Try l2o.learnable_adam()."
        )
    validate_task(task)
    check_objective(objective, task)
    shortest, longest = horizons_of(horizon)
    check_horizon(shortest, longest, window)
    check_curriculum(curriculum, shortest, longest, window)
    check_can_train(lopt, task, longest)

    def begin(key: Key, num_steps: jax.Array, theta: Theta) -> InnerState:
        run = start_run(task, lopt.transform(theta, horizon=num_steps), key, num_steps)
        return run._replace(best=jnp.float32(jnp.inf)) if objective.follows_best else run

    def start(key: Key, is_cut: bool | jax.Array, age: jax.Array, theta: Theta) -> InnerState:
        if not curriculum:
            return staggered_start(begin, shortest, longest, window)(key, is_cut, theta)
        most = grown_horizon(age / curriculum, shortest, longest, window)
        run = staggered_start(begin, shortest, most, window)(key, is_cut, theta)
        return run._replace(age=age)

    def unroll(key: Key, theta: Theta, state: InnerState, data: Data) -> tuple[InnerState, Window]:
        k_batches, k_fresh, k_next = jax.random.split(key, 3)
        following = start(k_next, state.horizon == 0, jnp.asarray(state.age), theta)
        is_over = state.step >= state.horizon
        state = jax.tree.map(lambda new, old: jnp.where(is_over, new, old), following, state)
        tx = lopt.transform(theta, horizon=state.horizon)
        is_on_step = objective.measure_on == "step"
        is_at_end = objective.summary == "final" and not is_on_step

        def step(carry, keys):
            params, opt_state = carry
            k_batch, k_measure = keys
            updated, opt_state, loss, batch = inner_step(
                task, tx, k_batch, params, opt_state, state.instance, data, own_batch=True
            )
            if is_at_end:
                cost = jnp.float32(0.0)  # measured once, below
            elif not is_on_step:
                cost = on_fresh_batches(objective, task, k_measure, updated, state.instance, data)
            elif objective.measure == "loss":
                cost = as_cost(objective, task, at_least_float32(loss))
            else:
                cost = cost_on_batch(objective, task, params, batch, state.instance)
            return (updated, opt_state), (loss, cost)

        k_measures = None if is_on_step or is_at_end else jax.random.split(k_fresh, window)
        keys = jax.random.split(k_batches, window), k_measures
        (params, opt_state), (losses, costs) = jax.lax.scan(
            jax.checkpoint(step, prevent_cse=False), (state.params, state.opt_state), keys
        )
        if is_at_end:
            cost = on_fresh_batches(objective, task, k_fresh, params, state.instance, data)
            costs = costs.at[-1].set(cost)
        steps = jnp.arange(1, window + 1) + state.step
        contribution, best = contributions(objective, task, costs, steps, state.horizon, state.best)
        after = state._replace(
            params=params, opt_state=opt_state, step=state.step + window, best=best
        )
        if curriculum:
            after = after._replace(age=jnp.asarray(state.age) + 1)
        return after, Window(
            loss=contribution,
            done=steps >= state.horizon,
            mask=jnp.ones(window, bool),
            finite=jnp.isfinite(losses),
            diverged=~(losses <= task.loss_cap) | jnp.isinf(losses),
        )

    return Problem(
        init=lambda key, theta: start(key, True, jnp.int32(0), theta),
        start=lambda key, theta: start(key, False, jnp.int32(0), theta),
        unroll=unroll,
        window=window,
        horizon=longest,
        data=task.data,
        is_differentiable=is_differentiable(objective, task),
        curriculum=curriculum,
    )


def is_differentiable(objective: Objective, task: Task) -> bool:
    """Whether backpropagation gives the gradient of an objective's cost of runs of a task."""
    is_modified = task.modifies_gradients and objective.measure_on == "train"
    return objective.is_differentiable and task.is_differentiable and not is_modified


def check_can_train(lopt: LearnedOptimizer, task: Task, horizon: int) -> None:
    """Raise a `ValueError` that says why, and of which task, unless the optimizer can train it.

    It may need a certain number of tensors, or batches that can be smaller.
    """

    def first_state(key: Key) -> optax.OptState:
        params = task.init(key, task.sample(key))
        return lopt.transform(lopt.init(key), horizon=horizon).init(params)

    try:
        state = jax.eval_shape(first_state, jax.random.key(0))
    except ValueError as error:
        raise ValueError(f"{error} The task is {task.name}.") from error
    if batch_fraction(state) is not None:
        check_shrinks(task)


def start_run(
    task: Task, tx: optax.GradientTransformation, key: Key, horizon: jax.Array
) -> InnerState:
    """Sample an instance, and start a run of the optimizer on it.

    Args:
        task: Task to train.
        tx: Optimizer that trains it.
        key: Random key of the instance and its initial parameters.
        horizon: Number of inner steps of the run, an int32 scalar.
    """
    k_instance, k_params = jax.random.split(key)
    instance = task.sample(k_instance)
    params = task.init(k_params, instance)
    return InnerState(instance, params, tx.init(params), step=jnp.int32(0), horizon=horizon)


def check_no_curriculum(problem: Problem, name: str) -> None:
    """Raise a `ValueError` if runs are to grow that an estimator begins anew in every outer step.

    Args:
        problem: Training runs.
        name: Name of the estimator or strategy.
    """
    if problem.curriculum:
        raise ValueError(
            f"`curriculum` must be 0 for {name}, which trains whole runs in every outer step; got "
            f"{problem.curriculum}. Drop it, or try nres."
        )
