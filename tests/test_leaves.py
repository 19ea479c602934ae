"""The edge between designs and the trees that people have; `check_optimizer` tries every design."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2o.learned_optimizer import require_horizon
from l2o.leaves import LARGEST, on_any_tree, scalar, without_extremes

ADAM = on_any_tree(optax.with_extra_args_support(optax.adam(0.1)), "adam")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_numbers_that_overflow_count_as_zero(dtype):
    usual = jnp.array([-3.0, 0.0, 1e-7, 6e4], dtype)
    extremes = jnp.array([jnp.inf, -jnp.inf, jnp.nan], dtype)
    found = without_extremes(jnp.concatenate([usual, extremes]))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, [*usual, 0.0, 0.0, 0.0])


def test_the_largest_number_is_kept_and_its_square_is_finite():
    g = jnp.float32(LARGEST)
    assert without_extremes(-g) == -g and jnp.isfinite(g * g)
    assert without_extremes(1.01 * g) == 0.0


def test_what_is_frozen_has_a_gradient_of_zero_to_the_state():
    params = {"w": jnp.ones(2), "frozen": {"a": jnp.ones(3), "b": jnp.ones(1)}}
    grads = {"w": jnp.ones(2), "frozen": None}
    zero = {"w": jnp.ones(2), "frozen": jax.tree.map(jnp.zeros_like, params["frozen"])}
    updates, state = ADAM.update(grads, ADAM.init(params), params)
    expected, expected_state = ADAM.update(zero, ADAM.init(params), params)
    assert updates["frozen"] is None
    np.testing.assert_array_equal(updates["w"], expected["w"])
    jax.tree.map(np.testing.assert_array_equal, state, expected_state)


def test_nothing_changes_for_trees_of_numbers():
    plain = optax.adam(0.1)
    params = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "s": 0.5, "n": np.ones(2, np.float32)}
    found, expected = (tx.update(params, tx.init(params), params) for tx in (ADAM, plain))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_random_keys_and_text_are_no_numbers():
    params = {"w": jnp.ones(2), "key": jax.random.key(0), "name": "layer"}
    grads = {"w": jnp.ones(2), "key": None, "name": None}
    updates, _ = ADAM.update(grads, ADAM.init(params), params)
    assert updates["key"] is None and updates["name"] is None and updates["w"].shape == (2,)


@pytest.mark.parametrize("given", ["params", "updates"])
def test_complex_leaves_are_named(given):
    real, mixed = {"a": {"w": jnp.ones(2)}}, {"a": {"w": jnp.ones(2, jnp.complex64)}}
    with pytest.raises(ValueError, match=rf"`{given}` must be real; .* at {given}\['a'\]\['w'\]"):
        if given == "params":
            ADAM.init(mixed)
        else:
            ADAM.update(mixed, ADAM.init(real), real)
    assert callable(optax.contrib.split_real_and_imaginary)  # what the error names


def test_losses_of_one_element_are_scalars():
    assert scalar(np.full((1, 1), 2.0), "adam").shape == ()
    with pytest.raises(ValueError, match=r"`value` must be a scalar.*adam got .* shape \(32,\)"):
        scalar(jnp.ones(32), "adam")


@pytest.mark.parametrize("horizon", [7, np.int64(7), 7.0, np.float32(7.0), jnp.int32(7)])
def test_whole_numbers_are_horizons(horizon):
    assert require_horizon(horizon, "celo") == 7


@pytest.mark.parametrize(
    "horizon", [0, -5, 7.5, float("nan"), float("inf"), "200", jnp.int32(0), np.int64(-1), [7]]
)
def test_other_things_are_not(horizon):
    with pytest.raises(ValueError, match="`horizon` must be a whole number of training steps"):
        require_horizon(horizon, "celo")
