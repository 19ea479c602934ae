import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from analytic import bowl_task

import l2o
from l2o.learned_optimizer import LearnedOptimizer
from l2o.objective import Objective, capped
from l2o.optimizers.learnable import learnable_sgd
from l2o.problem import inner_problem, reset_run
from l2o.task import Task, validate_task

pytestmark = pytest.mark.usefixtures("strict_ranks")

TASK = bowl_task()
WINDOW = 5
HORIZON = 20


def _rate_over_horizon(theta, *, horizon=None):
    """SGD at the rate theta / horizon times the loss: shows what the optimizer is told."""
    rate = theta / horizon

    def update(updates, state, params=None, *, value, **extra_args):
        return jax.tree.map(lambda g: -rate * jnp.tanh(value) * g, updates), state + value

    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)


TOLD = LearnedOptimizer(
    name="told", init=lambda key: jnp.float32(2.0), transform=_rate_over_horizon
)
PROBLEM = inner_problem(TASK, TOLD, horizon=HORIZON, window=WINDOW)
THETA = jnp.float32(2.0)


def started(key, *, step=0, horizon=HORIZON):
    state = PROBLEM.init(key, THETA)
    return state._replace(step=jnp.int32(step), horizon=jnp.int32(horizon))


def trees_equal(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("step", [0, WINDOW, HORIZON - WINDOW, HORIZON])
def test_another_run_follows_the_horizon_and_only_that(step, key):
    state = started(key, step=step)
    after, window = PROBLEM.unroll(jax.random.key(7), THETA, state, ())
    is_over = step == HORIZON
    last = step + WINDOW == HORIZON
    assert window.done.tolist() == [False] * (WINDOW - 1) + [last]
    assert window.loss.shape == window.mask.shape == window.finite.shape == (WINDOW,)
    assert bool(jnp.all(window.mask)) and bool(jnp.all(window.finite))
    assert int(after.step) == (WINDOW if is_over else step + WINDOW)
    assert trees_equal(after.instance, state.instance) != is_over
    assert int(after.horizon) == HORIZON
    # It depends on its key and not on the run before it.
    elsewhere = state._replace(params={"x": state.params["x"] + 1.0}, opt_state=jnp.float32(2.0))
    again, _ = PROBLEM.unroll(jax.random.key(7), THETA, elsewhere, ())
    assert trees_equal(again.instance, after.instance)
    assert trees_equal(again.params, after.params) == is_over
    assert trees_equal(again.opt_state, after.opt_state) == is_over
    other, _ = PROBLEM.unroll(jax.random.key(8), THETA, state, ())
    assert trees_equal(other.instance, after.instance) != is_over


def test_runs_that_follow_one_that_was_reset_are_staggered(key):
    broken = started(key, step=WINDOW)._replace(params={"x": jnp.full(2, jnp.nan)})
    unroll = jax.jit(jax.vmap(PROBLEM.unroll, (0, None, None, None)))
    after, window = unroll(jax.random.split(key, 400), THETA, reset_run(broken), ())
    assert np.all(after.step == WINDOW) and np.all(window.finite)
    lengths, counts = np.unique(after.horizon, return_counts=True)
    assert lengths.tolist() == [5, 10, 15, 20]
    assert np.all(counts > 70)
    np.testing.assert_array_equal(window.done[:, -1], after.horizon == WINDOW)


def test_window_equals_a_plain_loop(key):
    horizon = HORIZON - WINDOW  # a first run, cut short: its optimizer is told so
    state = started(key, horizon=horizon)
    unroll_key = jax.random.key(3)
    after, window = jax.jit(PROBLEM.unroll)(unroll_key, THETA, state, ())

    tx = TOLD.transform(THETA, horizon=horizon)
    params, opt_state, losses = state.params, tx.init(state.params), []
    for k in jax.random.split(jax.random.split(unroll_key, 3)[0], WINDOW):
        batch = TASK.batch(k, state.instance, (), "train")
        loss, grads = jax.value_and_grad(TASK.loss)(params, batch, state.instance)
        updates, opt_state = tx.update(grads, opt_state, params, value=loss)
        params = optax.apply_updates(params, updates)
        losses.append(loss)
    np.testing.assert_allclose(window.loss, losses, rtol=1e-5)
    np.testing.assert_allclose(after.params["x"], params["x"], rtol=1e-5)
    np.testing.assert_allclose(after.opt_state, opt_state, rtol=1e-5)
    assert len(set(np.round(losses, 6).tolist())) == WINDOW


def test_starts_are_staggered(key):
    init = jax.jit(jax.vmap(PROBLEM.init, (0, None)))
    states = init(jax.random.split(key, 400), THETA)
    lengths, counts = np.unique(states.horizon, return_counts=True)
    assert lengths.tolist() == [5, 10, 15, 20]
    assert np.all(counts > 70)
    assert np.all(np.asarray(states.step) == 0)
    assert len(np.unique(np.asarray(states.params["x"]), axis=0)) == 400


def test_runs_stay_spread_over_all_stages(key):
    members = 200

    def advance(states, k):
        keys = jax.random.split(k, members)
        states, _ = jax.vmap(PROBLEM.unroll, (0, None, 0, None))(keys, THETA, states, ())
        return states, states.step

    states = jax.vmap(PROBLEM.init, (0, None))(jax.random.split(key, members), THETA)
    _, steps = jax.jit(lambda s: jax.lax.scan(advance, s, jax.random.split(key, 9)))(states)
    for row in np.asarray(steps[3:]):
        stages, counts = np.unique(row, return_counts=True)
        assert stages.tolist() == [5, 10, 15, 20]
        assert np.all(counts > members / 8)


def test_a_run_knows_its_horizon_from_its_start(key):
    """However it came about: first, cut, after another, or after one that was reset."""
    knows = LearnedOptimizer(
        name="knows",
        init=lambda key: jnp.float32(0.1),
        transform=lambda theta, *, horizon=None: optax.GradientTransformationExtraArgs(
            lambda params: jnp.float32(horizon),
            lambda updates, state, params=None, **_: (updates, state),
        ),
    )
    problem = inner_problem(TASK, knows, horizon=(10, 40), window=WINDOW)
    keys = jax.random.split(key, 300)
    first = jax.vmap(problem.init, (0, None))(keys, THETA)
    unroll = jax.jit(jax.vmap(problem.unroll, (0, None, 0, None)))
    second, _ = unroll(keys, THETA, first._replace(step=first.horizon), ())
    third, _ = unroll(keys, THETA, reset_run(second), ())
    for states in (first, jax.vmap(problem.start, (0, None))(keys, THETA), second, third):
        np.testing.assert_array_equal(states.opt_state, states.horizon)
        assert len(np.unique(states.horizon)) >= 7


def test_the_best_of_a_run_is_not_that_of_the_run_before(key):
    problem = inner_problem(TASK, TOLD, horizon=HORIZON, window=WINDOW, objective=Objective("best"))
    state = problem.init(key, THETA)._replace(
        step=jnp.int32(HORIZON), horizon=jnp.int32(HORIZON), best=jnp.float32(-7.0)
    )
    after, _ = problem.unroll(key, THETA, state, ())
    assert after.best >= 0.0


def test_cut_horizons_are_shares_of_drawn_ones(key):
    problem = inner_problem(TASK, TOLD, horizon=(10, 40), window=WINDOW)
    states = jax.jit(jax.vmap(problem.init, (0, None)))(jax.random.split(key, 4000), THETA)
    counts = np.bincount(np.asarray(states.horizon) // WINDOW, minlength=9)[1:]
    drawn = {k: np.log((k + 1) / k) / np.log(9 / 2) for k in range(2, 9)}  # as below
    expected = [4000 * sum(p / k for k, p in drawn.items() if k >= j) for j in range(1, 9)]
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_the_longest_run_of_a_curriculum_grows_geometrically_with_the_age_of_a_member(key):
    options = {"horizon": (10, 40), "window": WINDOW}
    problem = inner_problem(TASK, TOLD, curriculum=8, **options)
    unroll = jax.jit(jax.vmap(problem.unroll, (0, None, None, None)))
    state = problem.init(key, THETA)
    assert int(state.horizon) <= 10 and int(state.age) == 0
    for age, longest in ((0, 10), (3, 15), (4, 20), (6, 25), (7, 30), (8, 40), (1000, 40)):
        over = state._replace(step=jnp.int32(HORIZON), horizon=jnp.int32(HORIZON), age=age)
        after, _ = unroll(jax.random.split(key, 300), THETA, over, ())
        assert np.unique(after.horizon).tolist() == list(range(10, longest + 1, 5))
        assert np.all(np.asarray(after.age) == age + 1)
    whole = inner_problem(TASK, TOLD, **options)
    same, _ = jax.vmap(whole.unroll, (0, None, None, None))(
        jax.random.split(key, 300), THETA, over._replace(age=()), ()
    )
    np.testing.assert_array_equal(same.horizon, after.horizon)  # once it is over it is as without
    assert same.age == ()


def test_what_a_curriculum_cannot_be():
    make = lambda horizon, curriculum: inner_problem(
        TASK, TOLD, horizon=horizon, window=WINDOW, curriculum=curriculum
    )
    with pytest.raises(ValueError, match="`horizon` must be a range for a curriculum; got 40 al"):
        make(40, 8)
    with pytest.raises(ValueError, match=r"`curriculum` must be a number of outer steps.* got -1"):
        make((10, 40), -1)
    grows = make((10, 40), 8)
    for name, whole_runs in (
        ("full_es", lambda: l2o.full_es(grows, num_pairs=1, std=0.1)),
        ("full_grad", lambda: l2o.full_grad(grows, num_members=1)),
        (
            "SNES",
            lambda: l2o.evolution_learner(
                {"bowl": grows}, "SNES", population_size=8, runs_per_candidate=1, std=0.1
            ),
        ),
    ):
        with pytest.raises(ValueError, match=f"`curriculum` must be 0 for {name}, .* got 8. Drop"):
            whole_runs()


def test_drawn_horizons_are_multiples_of_the_window_within_their_range(key):
    problem = inner_problem(TASK, TOLD, horizon=(10, 40), window=WINDOW)
    state = started(key, step=HORIZON)
    unroll = jax.jit(jax.vmap(problem.unroll, (0, None, None, None)))
    after, _ = unroll(jax.random.split(key, 2000), THETA, state, ())
    lengths, counts = np.unique(after.horizon, return_counts=True)
    assert lengths.tolist() == list(range(10, 41, 5))
    # Log-uniform over whole windows: P(k) = ln((k + 1) / k) / ln(9 / 2).
    k = lengths / WINDOW
    expected = 2000 * np.log((k + 1) / k) / np.log(9 / 2)
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))


def test_a_diverged_run_costs_the_cap(key):
    lopt = learnable_sgd(learning_rate=1e12)
    for meta_loss in ("mean", "log"):
        problem = inner_problem(
            TASK, lopt, horizon=HORIZON, window=WINDOW, objective=Objective(meta_loss)
        )
        theta = lopt.init(key)
        state = problem.init(key, theta)._replace(horizon=jnp.int32(HORIZON))
        _, window = problem.unroll(key, theta, state, ())
        cap = TASK.loss_cap if meta_loss == "mean" else np.log(TASK.loss_cap + 1e-3)
        np.testing.assert_allclose(window.loss[1:], cap, rtol=1e-6)
        assert window.loss[0] < cap
        assert bool(window.finite[0]) and not bool(window.finite[-1])


def test_log_meta_loss(key):
    plain, log = (
        inner_problem(TASK, TOLD, horizon=HORIZON, window=WINDOW, objective=Objective(m)).unroll(
            key, THETA, started(key), ()
        )[1]
        for m in ("mean", "log")
    )
    np.testing.assert_allclose(log.loss, np.log(np.asarray(plain.loss) + 1e-3), rtol=1e-4)


def test_capped():
    losses = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 3.0, 1.0])
    np.testing.assert_array_equal(capped(losses, 2.0), [2.0, 2.0, -np.inf, 2.0, 1.0])
    assert np.isnan(capped(losses, jnp.inf)[0]) or np.isinf(capped(losses, jnp.inf)[0])


@pytest.mark.parametrize(
    ("horizon", "window", "message"),
    [
        (20, 0, "`window` must be at least 1; got 0. Try window=50."),
        (5, 5, "`horizon` must be above `window`; got horizon=5, window=5. Try horizon=20."),
        (
            (5, 10),
            5,
            "`horizon` must be above `window`; got horizon=5, window=5. Try horizon=10 20.",
        ),
        (-3, 5, "`horizon` must be above `window`; got horizon=-3, window=5. Try horizon=20."),
        (
            22,
            5,
            "`horizon` must be a multiple of `window`; got horizon=22, window=5. Try horizon=25.",
        ),
        ((10, 22), 5, "`horizon` must be a multiple of `window`; got horizon=22"),
        ((30, 20), 5, "`horizon` must go from short to long; got 30 to 20. Try horizon=20 30."),
    ],
)
def test_bad_horizon_or_window(horizon, window, message):
    with pytest.raises(ValueError) as caught:
        inner_problem(TASK, TOLD, horizon=horizon, window=window)
    assert str(caught.value).startswith(message)


def bad_task(**changes) -> Task:
    parts = {
        "name": "bad",
        "sample": lambda key: (),
        "init": lambda key, instance: {"x": jnp.zeros(2)},
        "batch": lambda key, instance, data, split: (),
        "loss": lambda params, batch, instance: jnp.sum(params["x"] ** 2),
        "loss_cap": 1.0,
    }
    return Task(**(parts | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"init": lambda key, instance: {"x": jnp.zeros(2), "n": jnp.zeros(2, jnp.int32)}},
            "`task` bad: parameters must be floating point; got int32 at params['n'].",
        ),
        (
            {"loss": lambda params, batch, instance: params["x"]},
            "`task` bad: the loss must be a float scalar; got float32(2,).",
        ),
        (
            {"loss": lambda params, batch, instance: jnp.argmax(params["x"])},
            "`task` bad: the loss must be a float scalar; got int32().",
        ),
        ({"loss_cap": 0.0}, "`loss_cap` of task bad must be positive; got 0.0."),
        ({"loss_cap": float("nan")}, "`loss_cap` of task bad must be positive; got nan."),
    ],
)
def test_malformed_tasks(changes, message):
    with pytest.raises(ValueError) as caught:
        inner_problem(bad_task(**changes), TOLD, horizon=20, window=5)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_task_may_have_an_infinite_cap():
    validate_task(bad_task(loss_cap=float("inf")))


def test_a_run_that_starts_draws_from_another_key_than_the_window(key):
    task = Task(
        name="shows_its_draws",
        sample=jax.random.uniform,
        init=lambda key, instance: {"x": jnp.zeros(2), "draw": jax.random.uniform(key)},
        batch=lambda key, instance, data, split: jax.random.uniform(key),
        loss=lambda params, draw, instance: draw + 0.0 * jnp.sum(params["x"]),
        loss_cap=10.0,
    )
    problem = inner_problem(task, learnable_sgd(), horizon=10, window=5)
    theta = learnable_sgd().init(key)
    state = problem.init(key, theta)._replace(step=jnp.int32(10), horizon=jnp.int32(10))
    after, window = problem.unroll(key, theta, state, ())
    draws = [*window.loss.tolist(), float(after.instance), float(after.params["draw"])]
    assert int(after.step) == 5
    assert len(set(draws)) == len(draws) == 7


def test_steps_that_have_diverged_are_above_the_cap():
    """Descent of x² at rate 1.5 multiplies x by -2: losses are 1, 4, 16, 64 and so on."""
    line = Task(
        name="line",
        sample=lambda key: None,
        init=lambda key, instance: {"x": jnp.float32(1.0)},
        batch=lambda key, instance, data, split: None,
        loss=lambda params, batch, instance: jnp.square(params["x"]),
        loss_cap=20.0,
    )
    problem = inner_problem(line, learnable_sgd(), horizon=160, window=80)
    theta = {"log_learning_rate": jnp.log(1.5)}
    key = jax.random.key(0)
    _, window = problem.unroll(key, theta, problem.start(key, theta), ())
    assert window.diverged.tolist() == [False] * 3 + [True] * 77
    assert bool(jnp.all(window.finite))  # gradients beyond 1e15 count as zero
