from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import bowl_task
from estimator_table import make, once

from l2o.distributed.mesh import population_mesh
from l2o.estimators.full_grad import full_grad
from l2o.estimators.pes import pes
from l2o.optimizers.learnable import learnable_sgd
from l2o.problem import inner_problem

LOPT = learnable_sgd()
PROBLEM = inner_problem(bowl_task(), LOPT, horizon=6, window=3)


def two_estimates(estimator, key):
    theta = LOPT.init(key)

    def both(k):
        state, found = estimator.init(k, theta), []
        for i in range(2):
            step_key = jax.random.fold_in(k, i)
            gradient, state, metrics = estimator.estimate(step_key, theta, state, estimator.data)
            found.append((gradient, metrics))
        return found, jax.tree.map(lambda x: x, state)

    return jax.jit(both)(key)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("pes", {}, marks=pytest.mark.slow),
        ("nres", {"shaping": "standardize"}),
        pytest.param("full_es", {"shaping": "centered_rank"}, marks=pytest.mark.slow),
        pytest.param("truncated_grad", {}, marks=pytest.mark.slow),
        pytest.param("variance_weighted", {}, marks=pytest.mark.slow),
    ],
)
def test_two_devices_compute_the_same_as_one(name, options, key):
    one = two_estimates(make(name, PROBLEM, num_pairs=4, **options), key)
    mesh = population_mesh(2)
    two = two_estimates(make(name, PROBLEM, num_pairs=4, mesh=mesh, **options), key)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    (gradient, _), _ = two[0]
    assert abs(float(gradient["log_learning_rate"])) > 1e-4
    states = [x for x in jax.tree.leaves(two[1]) if x.ndim and x.shape[0] == 4]
    assert bool(states) == (name != "full_es")
    assert all(len(x.sharding.device_set) == 2 for x in states)


@pytest.mark.parametrize(
    "name",
    [
        *("pes", "truncated_grad"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("full_es", "full_grad")),
    ],
)
def test_a_task_with_a_loop_runs_on_two_devices(name, key):
    """Its carry begins as a constant, alike on all devices, and ends as what each has trained."""

    def loss(params, shift, instance):
        difference = params["x"] - instance["minimum"] - shift
        add = lambda total, x: (total + 0.5 * x**2, None)
        return jax.lax.scan(add, jnp.float32(0.0), difference)[0]

    problem = inner_problem(replace(bowl_task(), loss=loss), LOPT, horizon=6, window=3)
    theta = LOPT.init(key)
    one = once(make(name, problem, num_pairs=4), key, theta)
    two = once(make(name, problem, num_pairs=4, mesh=population_mesh(2)), key, theta)
    assert abs(float(two[0]["log_learning_rate"])) > 1e-4
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_devices", [0, 3])
def test_more_devices_than_there_are(num_devices):
    message = f"`devices` must be between 1 and the 2 present; got {num_devices}. Try devices=2."
    with pytest.raises(ValueError, match=message):
        population_mesh(num_devices)


@pytest.mark.parametrize(("num_pairs", "nearest"), [(1, 2), (3, 4), (5, 4)])
def test_population_that_does_not_divide(num_pairs, nearest):
    message = (
        f"`num_pairs` must be a multiple of the 2 devices; got {num_pairs}. "
        f"Try num_pairs={nearest}."
    )
    with pytest.raises(ValueError, match=message):
        pes(PROBLEM, num_pairs=num_pairs, std=0.1, mesh=population_mesh(2))
    with pytest.raises(ValueError, match=message.replace("num_pairs", "num_members")):
        full_grad(PROBLEM, num_members=num_pairs, mesh=population_mesh(2))
