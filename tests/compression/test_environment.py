"""The walk over layers: what it observes, what it pays, and that it never exceeds the budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_trained import conv_net, schemes, trained_mlp

from l2o.compression.environment import (
    NUM_FEATURES,
    compression_environment,
    measure_sensitivity,
    only_if_any,
)
from l2o.compression.problem import compression_problem


@pytest.fixture(scope="module")
def problem():
    return compression_problem(trained_mlp(), schemes(trained_mlp())["keep"])


@pytest.fixture(scope="module")
def measured(problem):
    return measure_sensitivity(problem)


def walk(environment, state, actions):
    step = jax.jit(environment.step)
    outcomes = []
    for action in actions:
        state, outcome = step(jax.random.key(0), state, jnp.full((1, 1), action), environment.data)
        outcomes.append((state, outcome))
    return outcomes


def test_an_episode_pays_what_the_network_gains_over_uniform(problem, measured):
    environment = compression_environment([problem], [measured])
    state = environment.enter(
        jax.random.key(1), environment.start(jax.random.key(0)), environment.data
    )
    actions = [0.3, -0.2, 0.9]
    walked = walk(environment, state, actions)
    assert [float(o.reward) for _, o in walked[:-1]] == [0.0, 0.0]
    assert [bool(o.done) for _, o in walked] == [False, False, True]
    gain = problem.score(problem.project(np.array(actions))) - measured.uniform
    assert float(walked[-1][1].reward) == pytest.approx(gain, abs=1e-6) != 0.0
    assert measured.evaluations == problem.num_groups + 2
    for after, _ in walked:
        assert problem.budget.spent(after.counts) <= problem.budget.limit
        observed = environment.observe(after).agents
        assert observed.shape == (1, NUM_FEATURES) and np.all(np.isfinite(observed))
    np.testing.assert_array_equal(walked[-1][0].counts, problem.project(np.array(actions)))


def test_an_agent_sees_the_sensitivity_of_the_group_that_it_acts_upon(problem, measured):
    environment = compression_environment([problem], [measured])
    start = environment.start(jax.random.key(0))
    state = environment.enter(jax.random.key(1), start, environment.data)
    hurt = np.maximum(measured.drops, 0.0)
    states = [state, *(after for after, _ in walk(environment, state, [0.0, 0.0]))]
    seen = np.array([environment.observe(s).agents[0] for s in states])
    np.testing.assert_allclose(seen[:, 8], hurt / hurt.sum(), rtol=1e-5)


def test_sensitivities_are_those_of_the_groups(problem, measured):
    counts = np.array(problem.budget.highest)
    counts[1] = problem.project(np.zeros(3))[1]
    assert measured.drops[1] == pytest.approx(measured.whole - problem.score(counts))
    assert measured.whole > measured.uniform


def test_networks_are_told_apart(problem, measured):
    other = problem.of(trained_mlp(1))
    both = compression_environment([problem, other], [measured, measure_sensitivity(other)])
    scores = set()
    for network in (0, 1):
        state = both.start(jax.random.key(0))._replace(network=jnp.int32(network))
        last = walk(both, both.enter(jax.random.key(0), state, both.data), [0.5, 0.0, 0.0])[-1][1]
        scores.add(float(last.reward))
        which = (problem, other)[network]
        uniform = which.score(which.project(np.zeros(3)))
        expected = which.score(which.project(np.array([0.5, 0.0, 0.0]))) - uniform
        assert float(last.reward) == pytest.approx(expected, abs=1e-6)
    assert len(scores) == 2
    drawn = {int(both.start(key).network) for key in jax.random.split(jax.random.key(0), 20)}
    assert drawn == {0, 1}


@pytest.mark.parametrize("name", ["unit_flops", "bits"])
def test_other_budgets(name):
    problem = compression_problem(conv_net(), schemes(conv_net())[name])
    environment = compression_environment([problem], [measure_sensitivity(problem)])
    assert environment.num_actions == len(problem.budget.names) == (3 if name != "bits" else 4)
    walked = walk(
        environment,
        environment.start(jax.random.key(0)),
        [1.0, -1.0, 1.0, -1.0][: environment.num_actions],
    )
    assert all(problem.budget.spent(s.counts) <= problem.budget.limit for s, _ in walked)


def test_networks_are_measured_only_where_an_episode_ends():
    seen = []

    def measure(x, shared):
        jax.debug.callback(lambda value: seen.append(float(value)), x)
        return x * shared

    @jax.jit
    @jax.vmap
    @jax.vmap
    def run(is_last, x):
        return only_if_any(measure)(is_last, x, jnp.float32(2.0))

    x = jnp.arange(4.0).reshape(2, 2)
    assert run(jnp.zeros((2, 2), bool), x).tolist() == [[0, 0], [0, 0]] and not seen
    assert run(jnp.ones((2, 2), bool), x).tolist() == [[0, 2], [4, 6]]
    jax.effects_barrier()
    assert sorted(seen) == [0, 1, 2, 3]
