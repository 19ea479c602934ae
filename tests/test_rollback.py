"""Meta-training that goes back: to what, when, and that nothing changes before."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import POLICY, THETA, tiny_learner, tiny_ppo
from user_module import bowl

import l2o
from l2o.cli import main as cli
from l2o.learner import Learner, MetaState, update_ema
from l2o.outer_loop import fit
from l2o.rollback import COPY_EVERY, GROWTH, with_rollback
from l2o.runs.folder import RunFolder
from l2o.runs.logging import TIMING_FIELDS, read_metrics
from l2o.tree import is_key

KEY = jax.random.key(3)


def counting(diverged) -> Learner:
    """Theta counts its steps by tens; at each the share that has diverged is given."""
    shares = jnp.asarray(diverged, jnp.float32)

    def init(key, theta):
        population = theta + jax.random.uniform(key)
        return MetaState(theta, theta, jnp.int32(0), population, jnp.int32(0))

    def step(key, state, data):
        del key, data
        theta = jax.tree.map(lambda t: t + 10.0, state.theta)
        average = update_ema(0.5, state.step, state.average, theta)
        metrics = {"meta_loss": jnp.float32(0.0), "finite": jnp.float32(1.0)}
        metrics["diverged"] = shares[state.step]
        population = state.estimator_state + 1.0
        after = MetaState(theta, average, state.opt_state + 1, population, state.step + 1)
        return after, metrics

    return Learner(init=init, step=step, theta=lambda state: state.average, steps=1)


def learner_of(diverged) -> Learner:
    return with_rollback(counting(diverged))


def thetas_of(diverged, num_steps: int) -> tuple[list[float], list[dict], MetaState]:
    learner = learner_of(diverged)
    state, thetas, lines = learner.init(KEY, jnp.float32(0.0)), [], []
    for _ in range(num_steps):
        state, metrics = jax.jit(learner.step)(KEY, state, ())
        thetas.append(float(state.theta))
        lines.append({name: float(value) for name, value in metrics.items()})
    return thetas, lines, state


def test_it_goes_back_to_the_copy_before_the_last_and_shortens_what_follows():
    bad = 35
    thetas, lines, state = thetas_of([0.4, *[0.0] * (bad - 1), 0.6, *[0.0] * 9], bad + 10)
    assert thetas[bad - 1] == 10.0 * bad
    assert [i for i, line in enumerate(lines) if line["rolled_back"]] == [bad]
    # Copies of theta are those that steps 10, 20 and 30 began with.
    back_at = 10.0 * (2 * COPY_EVERY - 1)
    assert thetas[bad] == back_at
    lengths = [line["length"] for line in lines]
    assert lengths[: bad + 1] == [1.0] * (bad + 1)
    np.testing.assert_allclose(lengths[bad + 1 :], 0.5 * GROWTH ** np.arange(9), rtol=1e-6)
    expected = back_at + 10.0 * np.cumsum(lengths[bad + 1 :])
    np.testing.assert_allclose(thetas[bad + 1 :], expected, rtol=1e-6)
    assert state.opt_state == 2 * COPY_EVERY - 1 + 9 and state.step == bad + 10
    # Of the copy's theta, not its average, by a key of its own, and nine steps old.
    population = float(state.estimator_state.estimator_state)
    assert back_at + 9.0 < population < back_at + 10.0
    first = learner_of([0.0]).init(KEY, jnp.float32(back_at)).estimator_state.estimator_state
    assert population - 9.0 != pytest.approx(float(first))
    average = thetas_of([0.4, *[0.0] * (bad - 1), 0.6, 0.0], bad + 2)[2].average
    before = thetas_of([0.4, *[0.0] * (bad - 1), 0.6], bad + 1)[2].average
    decay = (1 + bad + 1) / (10 + bad + 1)
    whole = min(0.5, decay) * before + (1 - min(0.5, decay)) * (back_at + 10.0)
    assert average == pytest.approx(before + 0.5 * (whole - before))


def test_the_average_goes_back_with_theta():
    whole = thetas_of([0.0] * 40, 19)[2]
    back = thetas_of([0.0] * 35 + [1.0], 36)[2]
    assert (back.theta, back.average) == (whole.theta, whole.average)
    assert float(back.average) != float(back.theta)


def test_two_in_a_row_go_back_to_the_same():
    thetas, lines, _ = thetas_of([0.0] * 35 + [1.0, 1.0] + [0.0] * 9, 46)
    assert thetas[35] == thetas[36] == 190.0
    assert lines[37]["length"] == 0.25


def test_a_population_that_always_diverges_is_gone_on_with():
    """Where theta is not to blame, the average share rises to what it is."""
    _, lines, _ = thetas_of([0.0] * 20 + [0.6] * 40, 60)
    back = [i for i, line in enumerate(lines) if line["rolled_back"]]
    assert back and back == list(range(20, 20 + len(back))) and len(back) < 10
    _, lines, _ = thetas_of([0.9] * 30, 30)  # from the start
    assert not any(line["rolled_back"] for line in lines)


@pytest.mark.parametrize("make", [tiny_learner, tiny_ppo])
def test_nothing_changes_while_all_is_well(make):
    learner = make()
    theta = THETA if make is tiny_learner else POLICY.init(jax.random.key(0))
    plain = fit(KEY, learner, theta, num_steps=12)
    watched = fit(KEY, with_rollback(learner), theta, num_steps=12)
    for x, y in zip(
        jax.tree.leaves((plain.theta, plain.average)),
        jax.tree.leaves((watched.theta, watched.average)),
        strict=True,
    ):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    assert watched.estimator_state.length == 1.0


def wild_learner() -> Learner:
    """Steps of theta that are far too long: soon no run of gradient descent converges.

    All then cost as much, the meta-gradient is zero, and theta stays where it is.
    """
    lopt = l2o.learnable_sgd(learning_rate=0.05)
    problem = l2o.inner_problem(bowl(), lopt, horizon=20, window=5)
    return l2o.gradient_learner(
        l2o.pes(problem, num_pairs=8, std=0.1), optax.adam(5.0), ema_decay=0.5
    )


def test_theta_that_makes_all_runs_diverge_is_left_again():
    plain, watched = [], []
    key = jax.random.key(2)
    fit(key, wild_learner(), THETA, num_steps=200, patience=1000, on_metrics=plain.append)
    fit(key, with_rollback(wild_learner()), THETA, num_steps=200, on_metrics=watched.append)
    at_end = lambda lines, name: np.mean([line[name] for line in lines[-10:]])
    assert at_end(plain, "diverged") > 0.5
    assert at_end(watched, "diverged") < 0.1
    assert sum(line["rolled_back"] for line in watched) * 10 == pytest.approx(2)


def test_a_run_that_went_back_resumes(tmp_path):
    learner, key = with_rollback(wild_learner()), jax.random.key(2)
    whole, part = (RunFolder.open(tmp_path / name, {}) for name in ("whole", "part"))
    state = fit(key, learner, THETA, num_steps=100, checkpoint_every=50, run=whole)
    fit(key, learner, THETA, num_steps=50, checkpoint_every=50, run=part)
    again = fit(key, learner, THETA, num_steps=100, checkpoint_every=50, run=part)
    assert state.estimator_state.length < 1.0
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        x, y = (jax.random.key_data(z) if is_key(z) else z for z in (x, y))
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    lines = [
        [
            {k: v for k, v in line.items() if k not in TIMING_FIELDS}
            for line in read_metrics(run.metrics)
        ]
        for run in (whole, part)
    ]
    assert lines[0] == lines[1]


def test_one_task_of_several_counts_by_itself():
    """Half of all has diverged where one of two tasks has wholly."""
    learner = counting([0.0] * 40)

    def step(key, state, data):
        after, metrics = learner.step(key, state, data)
        is_bad = (state.step == 30).astype(jnp.float32)
        return after, metrics | {"a/diverged": is_bad, "diverged": 0.5 * is_bad}

    watched = with_rollback(dataclasses.replace(learner, step=step))
    state, back = watched.init(KEY, jnp.float32(0.0)), []
    for _ in range(40):
        state, metrics = jax.jit(watched.step)(KEY, state, ())
        back.append(float(metrics["rolled_back"]))
    assert np.flatnonzero(back).tolist() == [30]


def test_the_schedule_of_a_std_goes_on():
    lopt = l2o.learnable_sgd(learning_rate=0.05)
    problem = l2o.inner_problem(bowl(), lopt, horizon=20, window=5)
    std = optax.exponential_decay(0.1, 100, 0.1)
    estimator = l2o.pes(problem, num_pairs=8, std=std)
    learner = with_rollback(l2o.gradient_learner(estimator, optax.adam(5.0), ema_decay=0.5))
    state = fit(jax.random.key(2), learner, THETA, num_steps=50)
    assert state.estimator_state.length < 1.0  # it went back
    assert state.estimator_state.estimator_state.step == state.step == 50


def test_of_a_policy_the_runs_that_ended_count():
    """At rates from 10 to 100 every run of the bowl ends at its cap."""
    wild = l2o.scheduler(lowest=10.0, highest=100.0, learning_rate=30.0, action_interval=2)
    lines = []
    theta = wild.init(jax.random.key(0))
    fit(KEY, tiny_ppo(wild), theta, num_steps=6, log_every=1, on_metrics=lines.append)
    assert [line["diverged"] for line in lines] == [1.0] * 6


def test_a_learner_that_does_not_tell_what_has_diverged():
    learner = counting([0.0])
    step = lambda key, state, data: (state, {"meta_loss": jnp.float32(0.0)})
    wrong = with_rollback(dataclasses.replace(learner, step=step))
    with pytest.raises(
        ValueError, match="`learner` must have a metric `diverged`; got one with meta"
    ):
        wrong.init(KEY, jnp.float32(0.0))


def test_strategies_refuse(tmp_path, capsys):
    words = "meta-train smoke --rollback --run-dir r SNES".split()
    assert cli.main(words) == 2
    assert (
        "`rollback` goes with estimators and policy gradients; got SNES" in capsys.readouterr().err
    )
