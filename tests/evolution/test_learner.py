"""Evolution strategies of evosax as outer optimizers."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from l2o import registry
from l2o.cli import main as cli
from l2o.cli.methods import strategies
from l2o.distributed.mesh import population_mesh
from l2o.evaluation.baseline import half_decades
from l2o.evaluation.starts import draw_starts
from l2o.evaluation.training import train_settings
from l2o.evolution import learner as evolution
from l2o.evolution.learner import evolution_learner
from l2o.evolution.strategies import (
    OPTIMIZED,
    POPULATION_BASED,
    SCHEDULED_STD,
    STRATEGIES,
    build_strategy,
    tell_strategy,
)
from l2o.learner import Learner
from l2o.optimizers.learnable import learnable_adam
from l2o.outer_loop import fit
from l2o.problem import InnerState, Problem, Window, inner_problem
from l2o.rng import stream
from l2o.runs.checkpoint import Checkpoints
from l2o.runs.folder import RunError, RunFolder
from l2o.runs.logging import TIMING_FIELDS, read_metrics

KEY = jax.random.key(3, impl="unsafe_rbg")  # compiles faster
MINIMUM = {"a": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array(0.5)}
START = jax.tree.map(jnp.zeros_like, MINIMUM)
NUM_RUNS = 3
NOISE = 0.1
OPTIONS = {"population_size": 8, "runs_per_candidate": NUM_RUNS, "std": 0.2}


def assert_same(a, b) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()


def lines_of(run: RunFolder) -> list[dict]:
    lines = read_metrics(run.metrics)
    return [{k: v for k, v in line.items() if k not in TIMING_FIELDS} for line in lines]


def distance(theta, state=None) -> jax.Array:
    """(a₁ - 1)² + 2 (a₂ + 2)² + 4 (a₃ - ½)² + 8 (b - ½)²."""
    del state
    off = jax.tree.map(jnp.subtract, theta, MINIMUM)
    return jnp.sum(jnp.array([1.0, 2.0, 4.0]) * off["a"] ** 2) + 8.0 * off["b"] ** 2


def bowl_problem(cost=distance, num_windows: tuple[int, int] = (1, 2)) -> Problem:
    """A step costs `cost(theta)`, a draw of its run, and the datum; NaN where b < -0.15.

    Args:
        cost: of a step.
        num_windows: of a short run and of a long one, which are drawn alike; two steps each.
    """

    def start(key, theta):
        del theta
        draw, length = jax.random.normal(key, (2,))  # in one: each takes half a second to compile
        return InnerState(
            instance=NOISE * draw,
            params=jnp.float32(0.0),
            opt_state=jax.random.key_data(key)[0],
            step=jnp.int32(0),
            horizon=2 * jnp.where(length > 0, *num_windows),
        )

    def unroll(key, theta, state, data):
        count = state.step + jnp.arange(1, 3)
        loss = jnp.full(2, cost(theta, state) + state.instance + data)
        loss = jnp.where(theta["b"] < -0.15, jnp.nan, loss)
        state = state._replace(opt_state=jax.random.key_data(key)[0], step=state.step + 2)
        return state, Window(
            loss=loss,
            done=count == state.horizon,
            mask=jnp.ones(2, bool),
            finite=jnp.isfinite(loss),
            diverged=~jnp.isfinite(loss),
        )

    return Problem(start, start, unroll, 2, 2 * max(num_windows), data=jnp.float32(0.0))


def learner_of(strategy: str, problems=None, **options) -> Learner:
    return evolution_learner(
        {"bowl": bowl_problem()} if problems is None else problems,
        strategy,
        **OPTIONS | {"optimizer": optax.adam(0.05)} | options,
    )


@functools.cache
def compiled(strategy: str):
    """A learner, its first state, and its step."""
    learner = learner_of(strategy, ema_decay=0.9)
    return learner, jax.jit(learner.init)(KEY, START), jax.jit(learner.step)


QUICK = frozenset({"CMA_ES", "Open_ES", "SimpleGA"})


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in STRATEGIES],
)
def test_every_strategy_comes_near_the_minimum(strategy, tmp_path):
    """On noisy runs, past candidates whose cost is NaN and a generation of nothing else."""
    learner, state, step = compiled(strategy)
    assert learner.steps == 8 * NUM_RUNS * 4
    assert_same(state.theta, START)
    valid = []
    for i in range(80):
        state, metrics = step(jax.random.fold_in(KEY, i), state, learner.data)
        metrics = jax.device_get(metrics)
        valid.append(metrics["valid"])
        if i == 0:  # around the start, at the std given
            assert abs(metrics["meta_loss"] - distance(START)) < 4.0
        assert metrics["best_loss"] <= metrics["meta_loss"] + 1e-6
        assert metrics["meta_loss"] == metrics["bowl/meta_loss"]
        assert metrics["finite"] == pytest.approx(metrics["valid"])
    assert min(valid) < 1 and min(valid) > 0  # some candidates were NaN
    assert distance(learner.theta(state)) < 0.02 * distance(START)

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state)
    assert_same(checkpoints.restore(jax.eval_shape(lambda: state), pytest.fail)[1], state)

    dead, metrics = step(KEY, state, {"bowl": jnp.float32(jnp.nan)})
    assert_same(dead._replace(step=state.step, average=state.average), state)
    assert metrics["valid"] == metrics["finite"] == 0
    assert np.isnan(metrics["meta_loss"]) and np.isnan(metrics["best_loss"])


def test_metrics_by_hand():
    """Of the candidates that evosax asks for: all train the same runs, weighted by problem."""
    twice = lambda theta, state: 2.0 * distance(theta)
    problems = {"two": bowl_problem(twice), "one": bowl_problem()}
    weights, groups = {"one": 1.0, "two": 3.0}, {"both": ["one", "two"]}
    learner = learner_of("SNES", problems, weights=weights, report_groups=groups)
    _, metrics = jax.jit(learner.step)(KEY, learner.init(KEY, START), learner.data)
    both = metrics["one/meta_loss"] * 0.25 + metrics["two/meta_loss"] * 0.75
    np.testing.assert_allclose(metrics["meta_loss"], both, rtol=1e-5)
    np.testing.assert_allclose(metrics["both/meta_loss"], both, rtol=1e-5)
    assert learner.steps == 2 * 8 * NUM_RUNS * 4

    _, alone = jax.jit(learner_of("SNES", {"one": bowl_problem()}).step)(
        KEY, learner.init(KEY, START), {"one": jnp.float32(0.0)}
    )
    np.testing.assert_array_equal(alone["one/meta_loss"], metrics["one/meta_loss"])


def test_candidates_train_the_same_runs_and_generations_do_not():
    problem = bowl_problem(lambda theta, state: 0.0)
    learner = learner_of("SNES", {"bowl": problem}, std=0.01)
    state, step, seen = learner.init(KEY, START), jax.jit(learner.step), []
    for i in range(3):
        after, metrics = step(jax.random.fold_in(KEY, i), state, learner.data)
        assert_same(after.opt_state, state.opt_state)  # ranks that say nothing change nothing
        np.testing.assert_allclose(metrics["best_loss"], metrics["meta_loss"], rtol=1e-5)
        seen.append(float(metrics["meta_loss"]))
    assert len(set(seen)) == 3 and np.std(seen) < 2 * NOISE


def test_a_run_costs_the_mean_over_its_own_steps():
    """By the number of the window: 0 in the first, 2 in the second."""
    problem = bowl_problem(lambda theta, state: state.step)
    learner = learner_of("SNES", {"bowl": problem}, runs_per_candidate=1)
    state, step = learner.init(KEY, START), jax.jit(learner.step)
    costs = {
        round(float(step(jax.random.key(i), state, learner.data)[1]["meta_loss"])) for i in range(8)
    }
    assert costs == {0, 1}  # and not (0 + 2) / 4, or 1 for all


def test_two_devices_equal_one():
    states = []
    for num_devices in (1, 2):
        learner = learner_of("CMA_ES", mesh=population_mesh(num_devices))
        key = jax.random.key(3)  # unlike the quicker one, its draws are the same on any layout
        states.append(fit(key, learner, START, num_steps=4, log_every=2, checkpoint_every=2))
    one, two = (jax.device_get(s) for s in states)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one, two)
    assert np.any(one.theta["a"] != START["a"])


def test_a_run_compiles_once_and_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    builds, traces = [], []
    monkeypatch.setattr(
        evolution, "build_strategy", lambda *a: builds.append(1) or build_strategy(*a)
    )
    learner = learner_of("CMA_ES", ema_decay=0.9)

    def step(key, state, data):
        traces.append(1)
        return learner.step(key, state, data)

    counted = Learner(learner.init, step, learner.theta, learner.steps, learner.data)
    schedule = {"log_every": 5, "checkpoint_every": 5}
    run = RunFolder.open(tmp_path, {})
    whole = fit(KEY, counted, START, num_steps=20, **schedule, run=run)
    assert len(traces) == len(builds) == 1
    lines = lines_of(run)
    assert set(lines[0]) == {
        *("step", "inner_steps", "meta_loss", "best_loss", "finite", "diverged", "valid"),
        "bowl/meta_loss",
    }
    shutil.rmtree(run.checkpoints / "20")
    assert_same(fit(KEY, learner, START, num_steps=20, **schedule, run=run), whole)
    assert lines_of(run) == lines and len(lines) == 4
    assert np.any(whole.average["a"] != whole.theta["a"])


def test_nothing_finite_stops_a_run():
    learner = learner_of("SNES", {"bowl": bowl_problem(lambda theta, state: jnp.inf)})
    with pytest.raises(RunError, match="no member had a finite loss in the last 10 outer steps"):
        fit(KEY, learner, START, num_steps=20, log_every=5, checkpoint_every=5, patience=10)


def test_a_schedule_of_the_std():
    """A tiny std from the third generation on: candidates no longer differ in cost."""
    schedule = lambda count: jnp.where(count < 1, 0.2, 1e-6)
    learner = learner_of("Open_ES", std=schedule, optimizer=optax.sgd(0.0))
    state, step, spread = learner.init(KEY, START), jax.jit(learner.step), []
    for _ in range(3):
        state, metrics = step(KEY, state, learner.data)
        spread.append(float(metrics["meta_loss"] - metrics["best_loss"]))
    assert spread[0] == spread[1] > 0.5 and spread[2] < 1e-3


BAD_ARGUMENTS = {
    "no problem": ({"problems": {}}, "`problems` must not be empty"),
    "strategy": ({"strategy": "CMAES"}, "`strategy` must be a known name; got CMAES. Try CMA_ES"),
    "few": ({"population_size": 3}, "`population_size` must be at least 4; got 3"),
    "odd": (
        {"strategy": "PGPE", "population_size": 5},
        "`population_size` must be even for PGPE, which samples pairs; got 5. "
        "Try population_size=6",
    ),
    "runs": (
        {"runs_per_candidate": 0},
        "`runs_per_candidate` must be at least 1; got 0. Try runs_per_candidate=4",
    ),
    "std": ({"std": 0.0}, "`std` must be positive and finite; got 0.0. Try std=0.1"),
    "nan std": ({"std": float("nan")}, "`std` must be positive and finite; got nan"),
    "schedule": (
        {"std": optax.constant_schedule(0.1)},
        "`std` must be a number for CMA_ES, which adapts it; got a schedule. Try std=0.1",
    ),
    "optimizer": (
        {"strategy": "Open_ES", "optimizer": None},
        "`optimizer` must be given for Open_ES, which moves its mean with one; got None. "
        "Try optimizer=optax.adam",
    ),
    "ema_decay": ({"ema_decay": 1.0}, "`ema_decay` must be in [0, 1); got 1.0"),
    "weights": (
        {"weights": {"bowk": 1.0}},
        "`weights` must be positive and finite, one for each of bowl; got {'bowk': 1.0}",
    ),
}


@pytest.mark.parametrize("name", BAD_ARGUMENTS)
def test_bad_arguments(name):
    options, message = BAD_ARGUMENTS[name]
    with pytest.raises(ValueError) as error:
        learner_of(**{"strategy": "CMA_ES", **options})
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("strategy", "theta", "message"),
    [
        ("CMA_ES", jnp.zeros(2001), "`strategy` CMA_ES needs a theta of at most 2000 numbers, as "
         "it decomposes a matrix of their square; got 2001. Try Sep_CMA_ES."),
        ("LM_MA_ES", jnp.zeros(3), "`strategy` LM_MA_ES needs a theta of at least 4 numbers, as it "
         "diverges on fewer; got 3. Try CMA_ES."),
        ("SNES", {"n": jnp.arange(3)}, "`theta` must be float32 throughout; got int32 at "
         "theta['n']. Cast it"),
    ],
)  # fmt: skip
def test_a_theta_that_does_not_suit(strategy, theta, message):
    with pytest.raises(ValueError) as error:
        learner_of(strategy).init(KEY, theta)
    assert message in str(error.value)


def test_the_tables_name_strategies_only():
    assert OPTIMIZED | SCHEDULED_STD | POPULATION_BASED <= set(STRATEGIES)
    assert [method.name for method in strategies.STRATEGIES] == list(STRATEGIES)


def test_lm_ma_es_does_not_depend_on_the_order_of_candidates():
    """evosax 0.3.2 weighs their directions by place, not by rank; `tell_strategy` sorts before."""
    es, params = build_strategy("LM_MA_ES", 8, 5, 0.1, None)
    candidates, state = es.ask(KEY, es.init(KEY, jnp.zeros(5), params), params)
    cost = jnp.sum((candidates - 1.0) ** 2, axis=1)
    tell = functools.partial(tell_strategy, "LM_MA_ES", es, KEY, params=params)
    told = tell(candidates, cost, state)
    other = tell(candidates[::-1], cost[::-1], state.replace(z=state.z[::-1]))
    np.testing.assert_allclose(told.M, other.M, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(told.mean, other.mean, rtol=1e-5, atol=1e-6)
    newest = params.mu_eff**0.5 * params.weights @ state.z[jnp.argsort(cost)]  # at a rate of 1
    np.testing.assert_allclose(told.M[0], newest, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_smoke_preset_runs(strategy, tmp_path):
    arguments = ["--run-dir", str(tmp_path / "run"), "--quiet", strategy]
    assert cli.main(["meta-train", "smoke", *arguments]) == 0
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert lines[-1]["valid"] == 1.0 and np.isfinite(lines[-1]["meta_loss"])
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_cma_es_tunes_adam_on_digits_as_well_as_a_grid_does():
    """Adam's four numbers from its defaults, against the best of nine learning rates.

    On held-out seeds, on which the grid's best is chosen. Mean and final loss may be worse by no
    more than two standard errors of the paired difference.
    """
    task, lopt = registry.task_family("digits_mlp").train[0], learnable_adam()
    num_steps, num_seeds = 100, 64
    problem = inner_problem(task, lopt, horizon=num_steps, window=50)
    learner = learner_of(
        "CMA_ES", {task.name: problem}, runs_per_candidate=4, std=0.5, ema_decay=0.8
    )
    theta0 = lopt.init(KEY)
    schedule = {"log_every": 10, "checkpoint_every": 10}
    state = fit(stream(0, "meta_training"), learner, theta0, num_steps=30, **schedule)

    starts = draw_starts(stream(0, "evaluation"), task, num_seeds)
    train = functools.partial(train_settings, task, starts=starts, horizon=num_steps)
    grid = train(optax.adam, np.array(half_decades(-8, 0)))
    thetas = jnp.stack([ravel_pytree(t)[0] for t in (theta0, learner.theta(state))])
    unravel = ravel_pytree(theta0)[1]
    untuned, tuned = train(lambda i: lopt.transform(unravel(thetas[i.astype(int)])), np.arange(2.0))
    for measure in (lambda c: c.train_loss.mean(axis=1), lambda c: c.final_loss):
        best = min((measure(curves) for curves in grid), key=np.mean)
        worse = measure(tuned) - best
        error = worse.std(ddof=1) / num_seeds**0.5
        print(f"tuned {measure(tuned).mean():.4f}, grid {best.mean():.4f}, ±{error:.4f}")
        assert worse.mean() < 2 * error
        assert measure(untuned).mean() > 2 * best.mean()
