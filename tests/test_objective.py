"""What a run costs: every summary is the mean over its steps, whatever the windows."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from analytic import bowl_task

from l2o.objective import Objective, as_cost, check_objective, contributions
from l2o.optimizers.learnable import learnable_sgd
from l2o.problem import inner_problem, unroll_run

HORIZON, WINDOW = 12, 4
LOPT = learnable_sgd(learning_rate=0.3)


def metrics(params, shift, instance):
    distance = jnp.linalg.norm(params["x"] - instance["minimum"])
    return {
        "distance": distance,
        "closeness": jnp.floor(10.0 * jnp.exp(-distance)),
        "is_far": jnp.all(shift > 50.0),
        "vector": params["x"],
    }


def batch(key, instance, data, split):
    """The bowl's, with the validation split far off, so that it shows which one was read."""
    far = {"train": 0.0, "valid": 100.0}[split]
    return BOWL.batch(key, instance, data, split) + far


BOWL = bowl_task()
TASK = dataclasses.replace(
    BOWL,
    batch=batch,
    metrics=metrics,
    maximized=frozenset({"closeness"}),
    metric_caps={"closeness": 0.0, "distance": 50.0},
    loss_scale=2.0,
)

RUNS = {
    "mean": lambda c: np.mean(c),
    "log": lambda c: np.mean(np.log(c + 1e-3)),
    "late_log": lambda c: np.average(np.log(c + 1e-3), weights=np.arange(1, len(c) + 1)),
    "final_log": lambda c: np.mean(np.log(c[-math.ceil(len(c) / 10) :] + 1e-3)),
    "final": lambda c: c[-1],
    "best": lambda c: np.min(c),
    "steps_to_target": lambda c: np.mean(np.minimum.accumulate(c) > 0.5),
}


def objective_of(summary, **fields):
    target = 0.5 if summary == "steps_to_target" else None
    return Objective(summary, **({"target": target} | fields))


@pytest.mark.parametrize("summary", RUNS)
def test_the_mean_over_windows_is_the_cost_of_the_run(summary):
    objective = objective_of(summary)
    costs = np.random.default_rng(0).uniform(0.3, 2.0, HORIZON).astype(np.float32)
    best = jnp.float32(jnp.inf) if objective.follows_best else ()
    found = []
    for start in range(0, HORIZON, WINDOW):
        steps = jnp.arange(start + 1, start + WINDOW + 1)
        window = jnp.asarray(costs[start : start + WINDOW])
        part, best = contributions(objective, TASK, window, steps, jnp.int32(HORIZON), best)
        found.append(part)
    np.testing.assert_allclose(np.mean(found), RUNS[summary](costs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("measured", [{}, {"measure_on": "train", "measure_batches": 3}])
@pytest.mark.parametrize("measure", ["loss", "distance"])
def test_what_is_measured_in_bfloat16_is_summed_up_in_float32(measure, measured, key):
    """Differences of two runs, and logarithms, would have two to three digits."""
    half = lambda x: jax.tree.map(lambda x: x.astype(jnp.bfloat16), x)
    halved = dataclasses.replace(
        TASK,
        loss=lambda params, batch, instance: half(BOWL.loss(params, batch, instance)),
        metrics=lambda params, batch, instance: half(
            {"distance": metrics(params, batch, instance)["distance"]}
        ),
        maximized=frozenset(),
    )
    window_of = lambda task, summary: (
        unroll_run(
            inner_problem(
                *(task, LOPT),
                horizon=HORIZON,
                window=WINDOW,
                objective=Objective(summary, measure=measure, **measured),
            ),
            key,
            LOPT.init(key),
            (),
        ).loss
    )
    costs = window_of(halved, "mean")
    assert costs.dtype == jnp.float32
    is_of_bfloat16 = np.all(costs == half(costs).astype(jnp.float32))
    # The mean over three batches is no number of bfloat16; the distance is alike on all three.
    assert is_of_bfloat16 == (measure == "distance" or not measured)
    if measure == "loss":
        expected = np.log(np.asarray(costs) + 1e-3)
        np.testing.assert_allclose(window_of(halved, "log"), expected, rtol=1e-5, atol=1e-6)


def plain_run(key):
    """Losses before each step, and the parameters after it, as `unroll_run` draws them."""
    k_start, k_windows = jax.random.split(key)
    *_, k_start = jax.random.split(k_start, 3)
    k_instance, k_params = jax.random.split(k_start)
    instance = TASK.sample(k_instance)
    params = TASK.init(k_params, instance)
    tx = optax.sgd(0.3)
    losses, after = [], []
    for k_window in jax.random.split(k_windows, HORIZON // WINDOW):
        for k in jax.random.split(jax.random.split(k_window, 3)[0], WINDOW):
            shift = TASK.batch(k, instance, (), "train")
            loss, grads = jax.value_and_grad(TASK.loss)(params, shift, instance)
            params = optax.apply_updates(params, tx.update(grads, tx.init(params))[0])
            losses.append(float(loss))
            after.append(params)
    return np.array(losses), after, instance


@pytest.fixture(scope="module")
def run():
    return plain_run(jax.random.key(3))


def cost_of_run(objective):
    problem = inner_problem(TASK, LOPT, horizon=HORIZON, window=WINDOW, objective=objective)
    theta = LOPT.init(jax.random.key(0))
    window = jax.jit(lambda key: unroll_run(problem, key, theta, ()))(jax.random.key(3))
    assert window.loss.shape == (HORIZON,)
    return float(jnp.mean(window.loss))


@pytest.mark.parametrize("summary", ["final", "best", "steps_to_target"])
def test_the_loss_of_the_steps_own_batch(summary, run):
    losses, _, _ = run
    np.testing.assert_allclose(cost_of_run(objective_of(summary)), RUNS[summary](losses), rtol=1e-4)


def test_a_metric_that_needs_no_gradient_and_is_maximized(run):
    _, after, instance = run
    closeness = np.array([float(metrics(p, jnp.zeros(2), instance)["closeness"]) for p in after])
    fields = {"measure": "closeness", "measure_on": "valid"}
    found = cost_of_run(objective_of("mean", **fields))
    np.testing.assert_allclose(found, -np.mean(closeness), rtol=1e-5)
    target = float(np.median(np.maximum.accumulate(closeness)))
    found = cost_of_run(objective_of("steps_to_target", target=target, **fields))
    expected = np.mean(np.maximum.accumulate(closeness) < target)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_final_loss_on_fresh_batches(normalize, run):
    """Noise of 0.1 on the minimum: half its variance times two dimensions, on top."""
    _, after, instance = run
    objective = Objective("final", measure_on="train", measure_batches=500, normalize=normalize)
    away = np.asarray(after[-1]["x"] - instance["minimum"])
    expected = 0.5 * np.sum(away**2) + 0.01
    error = np.sqrt(np.sum(away**2) * 0.1**2 / 500) + 0.01 / np.sqrt(500)
    scale = 2.0 if normalize else 1.0
    assert abs(scale * cost_of_run(objective) - expected) < 4 * error


def test_the_rest_of_a_run_does_not_depend_on_what_is_measured():
    """Fresh batches draw from keys of their own."""
    theta = LOPT.init(jax.random.key(0))
    states = []
    for objective in (Objective(), Objective(measure_on="train", measure_batches=2)):
        problem = inner_problem(TASK, LOPT, horizon=HORIZON, window=WINDOW, objective=objective)
        state = problem.start(jax.random.key(1), theta)
        states.append(jax.jit(problem.unroll)(jax.random.key(2), theta, state, ())[0])
    np.testing.assert_array_equal(states[0].params["x"], states[1].params["x"])


def test_shorter_runs_are_masked_after_their_end():
    problem = inner_problem(TASK, LOPT, horizon=(8, 32), window=WINDOW)
    theta = LOPT.init(jax.random.key(0))
    run = jax.jit(
        jax.vmap(
            lambda key: (
                problem.start(jax.random.split(key)[0], theta).horizon,
                unroll_run(problem, key, theta, ()).mask,
            )
        )
    )
    horizons, masks = run(jax.random.split(jax.random.key(0), 64))
    np.testing.assert_array_equal(np.sum(masks, axis=1), horizons)
    assert {8, 32} <= set(horizons.tolist()) and masks.shape == (64, 32)
    assert all(np.all(np.diff(mask.astype(int)) <= 0) for mask in np.asarray(masks))


MISTAKES = {
    "no metric": (Objective(measure="acc"), "`measure` must be loss or a metric of task bowl; "),
    "its names": (Objective(measure="acc"), "Try loss, closeness, distance, is_far"),
    "log of a metric": (Objective("log", measure="distance"), "must be loss for the objective log"),
    "late log of a metric": (Objective("late_log", measure="distance"), "the objective late_log"),
    "final log of a metric": (Objective("final_log", measure="distance"), "objective final_log"),
    "no target": (Objective("steps_to_target"), "got target=None with steps_to_target. Try"),
    "a target": (Objective("mean", target=0.1), "got target=0.1 with mean. Drop it."),
    "no batches": (Objective(measure_on="valid", measure_batches=0), "at least 1; got 0"),
    "vector": (Objective(measure="vector"), "`measure` must be a scalar; got vector of shape (2,)"),
    "scaled metric": (Objective(measure="distance", normalize=True), "goes with the loss"),
    "nan": (Objective("steps_to_target", target=float("nan")), "`target` must be finite and, for"),
    "cap": (Objective("steps_to_target", target=300.0), "below the cap of task bowl, 200; got 300"),
    "summary": (Objective("min"), "`summary` must be one of mean, log, late_log, final_log"),  # pyright: ignore
    "split": (Objective(measure_on="test"), "`measure_on` must be one of step, train, valid"),  # pyright: ignore
    "own batch": (Objective(measure_batches=2), "must be 1 on the step's own batch; got 2"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case):
    objective, says = MISTAKES[case]
    with pytest.raises(ValueError) as caught:
        check_objective(objective, TASK)
    assert says in str(caught.value)


def test_what_has_a_gradient():
    assert Objective("best").is_differentiable
    assert not objective_of("steps_to_target").is_differentiable
    assert not Objective(measure="distance").is_differentiable


def test_a_task_without_validation_batches():
    task = dataclasses.replace(
        TASK, batch=lambda key, instance, data, split: {"train": jnp.zeros(2)}[split]
    )
    with pytest.raises(
        ValueError, match="`measure_on` must be batches that task bowl has; got valid"
    ):
        check_objective(Objective(measure_on="valid"), task)


@pytest.mark.parametrize(("split", "expected"), [("train", 0.0), ("valid", 1.0)])
def test_fresh_batches_are_of_the_split_that_is_asked_for(split, expected):
    for summary in ("mean", "final"):
        objective = Objective(summary, measure="is_far", measure_on=split)
        assert cost_of_run(objective) == expected


def test_caps_and_scales():
    """The cap of 200 is in units of the loss, and so is a target; a metric has caps of its own."""
    assert as_cost(Objective(), TASK, 300.0) == 200.0
    assert as_cost(Objective(), TASK, jnp.nan) == 200.0
    assert as_cost(Objective(normalize=True), TASK, 300.0) == 100.0
    assert as_cost(Objective(normalize=True), TASK, 30.0) == 15.0
    assert as_cost(Objective(measure="distance"), TASK, 80.0) == 50.0
    assert as_cost(Objective(measure="distance"), TASK, jnp.nan) == 50.0
    assert as_cost(Objective(measure="closeness"), TASK, 3.0) == -3.0
    assert as_cost(Objective(measure="closeness"), TASK, jnp.nan) == 0.0
    assert as_cost(Objective(measure="is_far"), TASK, jnp.nan) == jnp.inf


def test_a_target_in_units_of_the_loss():
    costs = jnp.array([0.4, 0.3, 0.2, 0.1])  # losses of 0.8 to 0.2, divided by 2
    objective = Objective("steps_to_target", target=0.5, normalize=True)
    steps = jnp.arange(1, 5)
    found, _ = contributions(objective, TASK, costs, steps, jnp.int32(4), jnp.float32(jnp.inf))
    np.testing.assert_array_equal(found, [1.0, 1.0, 0.0, 0.0])


def test_divergence_does_not_reach_a_target():
    lopt = learnable_sgd(learning_rate=1e12)
    objective = Objective("steps_to_target", measure="distance", measure_on="train", target=0.1)
    problem = inner_problem(TASK, lopt, horizon=HORIZON, window=WINDOW, objective=objective)
    theta = lopt.init(jax.random.key(0))
    window = jax.jit(lambda key: unroll_run(problem, key, theta, ()))(jax.random.key(3))
    np.testing.assert_array_equal(window.loss, np.ones(HORIZON))
