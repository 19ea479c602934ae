"""How good estimators of a meta-gradient are: bias, variance, cosine and cost at equal inner steps.

Theta is held fixed, and replicates are measured: in each of them all members of an estimator train
from the first step of a run to its last, a window at a time, and the estimates of the windows are
averaged. Replicates are independent, so their spread is the noise that is left when outer steps add
up estimates, correlations between windows included. Every estimator spends the same inner steps: a
member that backpropagates gets two replicates for each one of a pair.

Other than in meta-training, where pairs are at stages of their own, all runs begin together. That
changes no moment of a replicate, and nothing has to be burnt in.
"""

import queue
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from l2o.diagnosis.summary import REFERENCES, Diagnosis, Job, ReferenceChoice, Replicates, summarize
from l2o.estimators.estimator import Estimator, EstimatorState
from l2o.estimators.full_es import full_es
from l2o.estimators.full_grad import full_grad
from l2o.horizons import check_horizon
from l2o.learned_optimizer import Theta
from l2o.problem import Problem
from l2o.runs.compilation import long_running
from l2o.runs.folder import RunError
from l2o.task import Data, Key

WIDTH = 128
"""Members side by side in one compiled program."""

MIN_REPLICATES = 8
"""Replicates of an estimator of so many members that equal inner steps would allow fewer."""

MakeProblem = Callable[[int, int], Problem]
"""`(horizon, window) -> Problem`."""

MakeEstimator = Callable[[Problem], Estimator]
"""`(problem) -> Estimator`."""


def diagnose(
    key: Key,
    make_problem: MakeProblem,
    theta: Theta,
    estimators: Mapping[str, MakeEstimator],
    *,
    horizons: Sequence[int],
    windows: Sequence[int],
    std: float,
    num_replicates: int = 256,
    reference: ReferenceChoice = "auto",
    on_replicates: Callable[[Job, Replicates], None] = lambda job, found: None,
) -> Diagnosis:
    """Measure bias, variance, cosine and cost of estimators at a theta.

    All windows are measured at the longest horizon, and all horizons at the shortest window.
    `full_es` and, unless the reference is "smoothed" or the meta-loss has no gradient, `full_grad`
    are measured in any case: further replicates of theirs are the references. Each device works on
    one estimator at a time.

    Args:
        key: Random key.
        make_problem: `(horizon, window) -> Problem`.
        theta: Theta at which to measure; stays as it is.
        estimators: Estimators by name. Estimates are of one window, other than those of `full_es`
            and `full_grad`, which are of whole runs. Each has one pair, or one member that
            backpropagates, unless it needs several.
        horizons: Inner steps of a training run.
        windows: Inner steps of an estimate; each divides the horizons that it is used with.
        std: Standard deviation σ of full ES.
        num_replicates: Independent replicates of a pair; estimators of more members get as many
            inner steps.
        reference: Gradient that bias and cosine are against. "auto" takes the exact one where it is
            finite and has the smaller standard error.
        on_replicates: Called with an estimator's replicates in the order of their completion.

    Raises:
        ValueError: If an argument is outside its range, or an estimator does not fit the problem;
            before anything is compiled.
        RunError: If an estimator does not fit the memory.
    """
    horizons, windows = sorted(set(horizons)), sorted(set(windows))
    check_grid(horizons, windows, num_replicates)
    pairs = measured_pairs(horizons, windows)
    problems = {pair: make_problem(*pair) for pair in pairs}
    problems = {pair: replace(p, init=p.start) for pair, p in problems.items()}
    is_differentiable = all(problem.is_differentiable for problem in problems.values())
    if reference == "exact" and not is_differentiable:
        raise ValueError(
            "`reference` must be smoothed for a metric, for steps_to_target, and for "
            "measure_on=train where the task modifies gradients, as backpropagation would not give "
            "the gradient; got exact. Try reference=smoothed."
        )
    whole_runs: dict[str, MakeEstimator] = {"full_es": partial(full_es, num_pairs=1, std=std)}
    if "full_grad" in estimators or (is_differentiable and reference != "smoothed"):
        whole_runs["full_grad"] = partial(full_grad, num_members=1)
    jobs: dict[Job, tuple[Estimator, int, int]] = {}
    for horizon in horizons:
        # Backpropagation keeps the states between windows, and one window's.
        window = min((w for h, w in pairs if h == horizon), key=lambda w: w + horizon // w)
        for name, make in whole_runs.items():
            estimator = estimators.get(name, make)(problems[horizon, window])
            fair = max(MIN_REPLICATES, round(num_replicates * 2 * horizon / estimator.steps))
            jobs[Job(name, horizon, None)] = estimator, 1, (1 + REFERENCES[name]) * fair
        for name in estimators:
            for window in [w for h, w in pairs if h == horizon and name not in whole_runs]:
                estimator = estimators[name](problems[horizon, window])
                fair = round(num_replicates * 2 * window / estimator.steps)
                job = Job(name, horizon, window)
                jobs[job] = estimator, horizon // window, max(MIN_REPLICATES, fair)

    idle = queue.SimpleQueue()
    for device in jax.local_devices():
        idle.put(device)

    def work(job: Job) -> Replicates:
        estimator, num_estimates, num_replicates = jobs[job]
        k_job = jax.random.fold_in(key, zlib.crc32(repr(tuple(job)).encode()))
        device = idle.get()
        try:
            with jax.default_device(device):
                k_job, at, data = jax.device_put((k_job, theta, estimator.data), device)
                here = replace(estimator, data=data)
                return sample_replicates(
                    k_job,
                    here,
                    at,
                    horizon=job.horizon,
                    num_estimates=num_estimates,
                    num_replicates=num_replicates,
                )
        finally:
            idle.put(device)

    found: dict[Job, Replicates] = {}
    pool = ThreadPoolExecutor(len(jax.local_devices()))
    try:
        # The longest first, so that no device is left with one at the end.
        longest_first = sorted(jobs, key=lambda job: -jobs[job][2] * job.horizon)
        futures = {pool.submit(work, job): job for job in longest_first}
        for future in as_completed(futures):
            job = futures[future]
            try:
                found[job] = future.result()
            except jax.errors.JaxRuntimeError as error:  # out of memory, most likely
                raise RunError(
                    f"{job.estimator} at horizon {job.horizon} could not be measured "
                    f"({' '.join(str(error).split())[:200]}). Try a shorter --horizon, or "
                    "--reference smoothed and an --estimator without it."
                ) from error
            on_replicates(job, found[job])
    finally:
        pool.shutdown(cancel_futures=True)
    return summarize({job: found[job] for job in jobs}, reference)


def measured_pairs(horizons: Sequence[int], windows: Sequence[int]) -> list[tuple[int, int]]:
    """List the pairs of a horizon and a window that are measured; both are sorted."""
    return [(h, windows[0]) for h in horizons[:-1]] + [(horizons[-1], w) for w in windows]


def check_grid(horizons: Sequence[int], windows: Sequence[int], num_replicates: int) -> None:
    """Raise a `ValueError` that says what to type unless all windows fit the horizons."""
    if not horizons or not windows:
        name = "window" if horizons else "horizon"
        raise ValueError(f"`{name}` must be at least one number; got none. Try {name}=50.")
    for horizon, window in measured_pairs(horizons, windows):
        check_horizon(horizon, horizon, window)
    if num_replicates < MIN_REPLICATES:
        raise ValueError(
            f"`num_replicates` must be at least {MIN_REPLICATES}; got {num_replicates}. "
            "Try num_replicates=256."
        )


def sample_replicates(
    key: Key,
    estimator: Estimator,
    theta: Theta,
    *,
    horizon: int,
    num_estimates: int,
    num_replicates: int,
) -> Replicates:
    """Draw independent replicates of an estimator, of `num_estimates` estimates each."""

    def run(key: Key, state: EstimatorState, theta: Theta, data: Data):
        def step(carry, k_estimate: Key):
            state, gradient, square, valid = carry
            estimate, state, metrics = estimator.estimate(k_estimate, theta, state, data)
            flat, _ = ravel_pytree(estimate)
            share = metrics["valid"]
            sums = gradient + share * flat, square + share * jnp.sum(flat**2), valid + share
            return (state, *sums), None

        zeros = jnp.zeros_like(ravel_pytree(theta)[0]), jnp.float32(0.0), jnp.float32(0.0)
        keys = jax.random.split(key, num_estimates)
        (_, gradient, square, valid), _ = jax.lax.scan(step, (state, *zeros), keys)
        total = jnp.where(valid > 0, valid, 1.0)
        return gradient / total, square / total, valid / num_estimates

    num_members = -(-estimator.steps * num_estimates // horizon)
    size = min(max(1, WIDTH // num_members), num_replicates)

    def arguments(chunk: int):
        k_states, k_runs = jax.random.split(jax.random.fold_in(key, chunk))
        # Op by op: estimators draw alike, so that little is left to compile for the next.
        states = jax.vmap(estimator.init, (0, None))(jax.random.split(k_states, size), theta)
        return jax.random.split(k_runs, size), states, theta, estimator.data

    begun = time.perf_counter()
    lowered = jax.jit(jax.vmap(run, (0, 0, None, None))).lower(*arguments(0))
    batch = lowered.compile(long_running())
    compiled = time.perf_counter()
    chunks, seconds = [], []
    for i in range(-(-num_replicates // size)):
        drawn = jax.block_until_ready(arguments(i))
        started = time.perf_counter()
        chunks.append(jax.device_get(batch(*drawn)))
        seconds.append(time.perf_counter() - started)
    gradients, squares, valid = (
        np.concatenate(arrays)[:num_replicates].astype(np.float64)
        for arrays in zip(*chunks, strict=True)
    )
    return Replicates(
        gradients=gradients,
        squares=squares,
        valid=valid,
        inner_steps=estimator.steps * num_estimates,
        seconds=min(seconds) / size,
        compile_seconds=compiled - begun,
    )
