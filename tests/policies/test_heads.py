"""Distributions over actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from l2o.policies.heads import bounded_log_std, make_head


def test_gaussian_head_against_scipy():
    head = make_head("gaussian", 2)
    outputs, log_std = jnp.array([0.3, -1.0]), jnp.array([-0.5, -2.0])
    pre_squash = jnp.array([0.1, -1.2])
    normal = scipy.stats.norm(np.asarray(outputs), np.exp(bounded_log_std(log_std)))
    np.testing.assert_allclose(
        head.log_prob(outputs, log_std, pre_squash), normal.logpdf(pre_squash).sum(), rtol=1e-5
    )
    np.testing.assert_allclose(head.entropy(outputs, log_std), normal.entropy().sum(), rtol=1e-5)
    beyond = jnp.array([-30.0, 30.0])
    np.testing.assert_allclose(
        head.sample(outputs, beyond, jnp.ones(2)), outputs + np.exp([-4.0, 0.0]), rtol=1e-5
    )
    np.testing.assert_allclose(bounded_log_std(head.init_log_std()), [-1.0, -1.0], rtol=1e-6)
    slopes = jax.vmap(jax.grad(bounded_log_std))(jnp.array([-6.0, 0.0, 6.0]))
    assert np.all(slopes > 0.005)  # there is a way back from near the bounds


def test_categorical_head_draws_what_it_says():
    head = make_head("categorical", 3)
    outputs, log_std = jnp.log(jnp.array([0.2, 0.5, 0.3])), head.init_log_std()
    noise = head.noise(jax.random.key(0), (20_000,))
    for z in (noise, head.antithetic(noise)):
        drawn = head.sample(jnp.broadcast_to(outputs, (20_000, 3)), log_std, z)
        counts = np.bincount(np.asarray(drawn[:, 0], int), minlength=3) / 20_000
        np.testing.assert_allclose(counts, [0.2, 0.5, 0.3], atol=4 * 0.5 / 20_000**0.5)
    np.testing.assert_allclose(
        head.log_prob(outputs, log_std, jnp.array([1.0])), np.log(0.5), rtol=1e-5
    )
    np.testing.assert_allclose(
        head.entropy(outputs, log_std), scipy.stats.entropy([0.2, 0.5, 0.3]), rtol=1e-5
    )
    assert head.mode(outputs) == 1.0
    np.testing.assert_allclose(head.antithetic(noise), 1.0 - noise)


def test_reflected_gaussian_noise_is_opposite_and_a_squashed_action_bounded():
    head = make_head("squashed", 1)
    noise = head.noise(jax.random.key(0), (5,))
    np.testing.assert_array_equal(head.antithetic(noise), -noise)
    assert np.all(np.abs(head.squash(100.0 * noise)) <= 1.0)


@pytest.mark.parametrize(("name", "number", "message"), [
    ("gaussian", 0, "at least 1 for a gaussian"),
    ("categorical", 1, "at least 2 for a categorical"),
    ("beta", 1, "`head` must be one of gaussian, squashed, categorical; got beta"),
])  # fmt: skip
def test_bad_heads(name, number, message):
    with pytest.raises(ValueError, match=message):
        make_head(name, number)
