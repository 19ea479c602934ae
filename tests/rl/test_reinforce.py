"""REINFORCE against a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from walk import HEAD, LINEAR, expected_return, theta_for, walk

from l2o.rl.reinforce import reinforce


def replicated(estimator, theta, number):
    """Mean and standard error of first estimates."""

    def once(key):
        k_init, k_run = jax.random.split(key)
        return estimator.estimate(k_run, theta, estimator.init(k_init, theta), ())[0]

    found = jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(1), number))
    mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), found)
    error = jax.tree.map(lambda g: jnp.std(g, axis=0, ddof=1) / number**0.5, found)
    return mean, error


@pytest.mark.parametrize(
    ("baseline", "group_size", "num_actions"),
    [
        ("antithetic", 2, 5),
        ("leave_one_out", 4, 5),
        ("value", 1, 5),
        ("value", 1, 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("antithetic", 2, 1),
                ("antithetic", 4, 1),
                ("antithetic", 4, 5),
                ("leave_one_out", 4, 1),
            ]
        ),
    ],
)
def test_reinforce_is_unbiased(baseline, group_size, num_actions):
    environment = walk(num_actions)
    theta = theta_for(environment, critic_scale=0.5)
    exact = jax.grad(expected_return, argnums=(0, 1))(theta.actor, theta.log_std, num_actions)
    estimator = reinforce(
        environment,
        LINEAR,
        HEAD,
        num_groups=64 // group_size,
        group_size=group_size,
        baseline=baseline,
        standardize=False,
    )
    mean, error = replicated(estimator, theta, 3000)
    found = jax.tree.leaves((mean.actor, mean.log_std))
    errors = jax.tree.leaves((error.actor, error.log_std))
    for g, e, x in zip(found, errors, jax.tree.leaves(exact), strict=True):
        # Of a mean over actions, and descended.
        assert np.all(np.abs(-num_actions * g - x) < 4 * num_actions * e)
        assert np.all(np.abs(x) > 5 * num_actions * e)  # or it would not say much


def test_baselines_remove_what_a_group_shares():
    """The context is most of the return; antithetic and leave-one-out do not feel it."""
    environment = walk(5)
    theta = theta_for(environment)
    errors = {}
    for baseline, group_size in (("antithetic", 4), ("leave_one_out", 4), ("value", 4)):
        estimator = reinforce(
            environment,
            LINEAR,
            HEAD,
            num_groups=8,
            group_size=group_size,
            baseline=baseline,
            standardize=False,
        )
        _, error = replicated(estimator, theta, 500)
        errors[baseline] = np.hstack(jax.tree.leaves((error.actor, error.log_std)))
    for baseline in ("antithetic", "leave_one_out"):
        assert np.all(errors[baseline] < 0.5 * errors["value"]), errors


def test_reinforce_does_not_feel_the_scale_of_rewards():
    theta = theta_for(walk(2))

    @jax.jit
    def gradient(scale):
        environment = walk(2, spoil=lambda reward, state: scale * reward)
        estimator = reinforce(environment, LINEAR, HEAD, num_groups=4, group_size=2)
        state = estimator.init(jax.random.key(0), theta)
        found, _, _ = estimator.estimate(jax.random.key(1), theta, state, ())
        return jnp.hstack([*found.actor.values(), found.log_std])

    np.testing.assert_allclose(gradient(1.0), gradient(5.0), rtol=1e-4)
    assert np.all(np.abs(gradient(1.0)) > 0.01)
