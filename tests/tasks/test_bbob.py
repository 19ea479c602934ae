"""Functions of BBOB."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evosax.problems import BBOBProblem

from l2o.evaluation.seen import task_signature
from l2o.tasks.bbob import HELD_OUT, META_TRAINED, bbob, bbob_function

FUNCTIONS = (*META_TRAINED, *HELD_OUT)
QUICK = {"rosenbrock_rotated", "lunacek"}


@pytest.mark.parametrize(
    "function",
    [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FUNCTIONS],
)
def test_values_are_evosax_s_over_their_mean_and_gradients_are_finite(function, key):
    task, problem = (
        bbob_function("f", function, dim=4),
        BBOBProblem(function, num_dims=4, f_opt=0.0),
    )
    theirs = problem._params
    instance = {
        "optimum": theirs.x_opt,
        "first_rotation": theirs.R,
        "second_rotation": theirs.Q,
    }
    points = jax.random.uniform(key, (64, 4), minval=-4.0, maxval=4.0)
    values, state, info = problem.eval(key, points, problem._state)
    del values, state
    ours = jax.vmap(jax.value_and_grad(lambda x: task.loss({"x": x}, (), instance)))
    losses, gradients = jax.jit(ours)(points)
    ratio = np.asarray(info["fn_val"]) / np.asarray(losses)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-3)
    assert np.all(np.isfinite(gradients)) and np.all(np.any(gradients != 0.0, axis=1))

    def at_start(k):
        k_sample, k_init = jax.random.split(k)
        drawn = task.sample(k_sample)
        return task.loss(task.init(k_init, drawn), (), drawn)

    starts = np.asarray(jax.jit(jax.vmap(at_start))(jax.random.split(key, 1000)))
    error = np.std(starts) * (1 / 1000 + 1 / 256) ** 0.5
    assert abs(np.mean(starts) - task.loss_scale) < 4.0 * error


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_are_finite_where_a_run_ends(function, key):
    task = bbob_function("f", function, dim=3)
    instance = task.sample(key)
    best = instance["optimum"]
    ends = jnp.stack([best, best + jnp.array([0.0, 1.0, 1.0]), best + jnp.array([1.0, 0.0, 0.0])])
    function_and_slope = jax.vmap(jax.value_and_grad(lambda x: task.loss({"x": x}, (), instance)))
    losses, gradients = jax.jit(function_and_slope)(ends)
    assert np.all(np.isfinite(losses)) and np.all(np.isfinite(gradients))
    if function in ("sphere", "rosenbrock", "katsuura"):
        assert losses[0] < 1e-6 < min(losses[1:])


def test_functions_are_no_variants_of_each_other():
    signatures = {task_signature(task) for task in bbob().evaluation}
    assert len(signatures) == len(FUNCTIONS)


def test_wrong_functions_and_dimensions():
    with pytest.raises(ValueError, match=r"`function` must be one of BBOB's; got bowl. Try rosen"):
        bbob_function("f", "bowl")
    with pytest.raises(ValueError, match=r"`dim` must be at least 2; got 1. Try dim=10."):
        bbob_function("f", "sphere", dim=1)
