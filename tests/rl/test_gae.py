"""Advantages and baselines against arrays by hand."""

import jax.numpy as jnp
import numpy as np

from l2o.rl.gae import generalized_advantages, standardized, subtract_baseline


def test_generalized_advantages_by_hand():
    """γ = 0.9, λ = 0.5; the episode ends with the second decision, a new one is cut."""
    found = generalized_advantages(
        jnp.array([1.0, 2.0, 3.0, 4.0]),
        jnp.array([0.5, 1.0, 1.5, 2.0]),
        jnp.array(10.0),
        jnp.array([False, True, False, False]),
        discount=0.9,
        gae_lambda=0.5,
    )
    last = 4.0 + 0.9 * 10.0 - 2.0  # bootstrapped: a window's end is not an episode's
    third = 3.0 + 0.9 * 2.0 - 1.5 + 0.45 * last
    second = 2.0 - 1.0  # nothing comes after an end
    first = 1.0 + 0.9 * 1.0 - 0.5 + 0.45 * second
    np.testing.assert_allclose(found, [first, second, third, last], rtol=1e-6)


def test_baselines_by_hand():
    returns = jnp.array([[[1.0], [2.0]], [[4.0], [8.0]], [[5.0], [100.0]]])
    mask = jnp.ones((3, 2, 1), bool).at[2, 1].set(False)
    values = 0.5 * returns
    found = {
        name: subtract_baseline(name, returns, values, mask)[..., 0]
        for name in ("antithetic", "leave_one_out", "value")
    }
    np.testing.assert_allclose(found["value"], values[..., 0])
    np.testing.assert_allclose(found["leave_one_out"][:2], [[-1.0, 1.0], [-4.0, 4.0]])
    assert found["leave_one_out"][2, 0] == 5.0  # its only neighbour does not count
    # Pairs are each a group: the mean of the other groups.
    others = np.array([17.0 / 3, 8.0 / 3, 15.0 / 4])
    np.testing.assert_allclose(found["antithetic"], returns[..., 0] - others[:, None], rtol=1e-6)


def test_antithetic_baseline_is_of_the_other_pairs_of_the_group():
    returns = jnp.array([[[1.0], [2.0], [10.0], [20.0], [3.0], [7.0]]])
    mask = jnp.ones((1, 6, 1), bool).at[0, 5].set(False)
    found = subtract_baseline("antithetic", returns, returns, mask)[0, :, 0]
    others = np.array([33 / 3, 33 / 3, 6 / 3, 6 / 3, 33 / 4, 33 / 4])
    np.testing.assert_allclose(found[:5], returns[0, :5, 0] - others[:5], rtol=1e-6)


def test_standardized_leaves_out_what_does_not_count():
    mask = jnp.array([True, True, True, False])
    found = standardized(jnp.array([1.0, 2.0, 6.0, 1e9]), mask)[:3]
    np.testing.assert_allclose([np.mean(found), np.std(found)], [0.0, 1.0], atol=1e-5)
