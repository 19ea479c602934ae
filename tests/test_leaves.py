"""The edge between designs and the trees that people have; `check_optimizer` tries every design."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from design_cases import NAMES, TABLE, perturbed_theta

from l2o.learned_optimizer import require_horizon
from l2o.leaves import LARGEST, is_number, on_any_tree, scalar, without_extremes
from l2o.loops.guard import guarded

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


@pytest.mark.parametrize("left_out", [jnp.ones(3), 0.5, jnp.int32(0)], ids=str)
def test_what_init_did_not_see_may_come_with_the_parameters(left_out):
    """As where a model is filtered for `init` and given whole to `update`."""
    seen = {"w": jnp.ones(2), "p": None}
    grads = {"w": jnp.ones(2), "p": None}
    found, state = ADAM.update(grads, ADAM.init(seen), seen | {"p": left_out})
    expected = ADAM.update(grads, ADAM.init(seen), seen)
    jax.tree.map(np.testing.assert_array_equal, (found, state), expected)


def test_arrays_without_a_gradient_that_init_saw_beside_numbers_that_it_did_not():
    params = {"w": jnp.ones(2), "frozen": jnp.ones(3), "p": 0.5, "training": True}
    state = ADAM.init(params | {"p": None, "training": None})
    grads = dict.fromkeys(params) | {"w": jnp.ones(2)}
    updates, after = ADAM.update(grads, state, params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert [updates[k] for k in ("frozen", "p", "training")] == [None] * 3


def test_a_state_of_other_parameters_is_told():
    state = ADAM.init({"other": jnp.ones(2)})
    with pytest.raises(ValueError, match="`state` must come from `init` of the parameters"):
        ADAM.update({"w": jnp.ones(2), "b": None}, state, {"w": jnp.ones(2), "b": jnp.ones(2)})


def test_parameters_that_an_optimizer_does_not_read_may_be_of_another_kind():
    grads = {"w": jnp.ones(2)}
    expected = ADAM.update(grads, ADAM.init(grads))
    for params in (flax.core.freeze(grads), {"other": 1.0}):
        found = ADAM.update(grads, ADAM.init(grads), params)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_no_gradients_at_all_are_a_mistake():
    with pytest.raises(ValueError, match="`updates` must be a tree of gradients; adam got None"):
        ADAM.update(None, ADAM.init({"w": jnp.ones(2)}), {"w": jnp.ones(2)})


def test_gradients_of_integers_that_jax_grad_gives_are_none():
    params = {"w": jnp.ones(2), "n": jnp.int32(3)}
    grads = jax.grad(lambda p: jnp.sum(p["w"]) * p["n"], allow_int=True)(params)
    updates, _ = ADAM.update(grads, ADAM.init(params), params)
    assert updates["n"] is None and updates["w"].shape == (2,)


@pytest.mark.parametrize("thing", [jnp.float32, np.float32, np.dtype("float32"), True, "text"])
def test_things_that_are_no_numbers(thing):
    assert not is_number(thing)
    ADAM.init({"w": jnp.ones(2), "thing": thing})


def test_integers_pass_as_they_are():
    g = jnp.array([2**30, -1], jnp.int32)
    np.testing.assert_array_equal(without_extremes(g), g)


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
    assert scalar(jnp.bfloat16(1e6), "adam") == jnp.bfloat16(1e6)
    with pytest.raises(ValueError, match="`value` must be a scalar, the real loss"):
        scalar(1 + 0j, "adam")
    with pytest.raises(ValueError, match=r"`value` must be a scalar.*adam got .* shape \(32,\)"):
        scalar(jnp.ones(32), "adam")


@pytest.mark.parametrize("horizon", [7, np.int64(7), 7.0, np.float32(7.0), jnp.int32(7)])
def test_whole_numbers_are_horizons(horizon):
    assert require_horizon(horizon, "celo") == 7


@pytest.mark.parametrize(
    "horizon",
    [0, -5, 7.5, float("nan"), float("inf"), "200", 1e30, jnp.int32(0), np.int64(-1), [7]],
)
def test_other_things_are_not(horizon):
    with pytest.raises(ValueError, match="`horizon` must be a whole number of training steps"):
        require_horizon(horizon, "celo")


@pytest.mark.parametrize("is_guarded", [False, True], ids=["", "guarded"])
@pytest.mark.parametrize("name", NAMES)
def test_what_a_user_forbids_elsewhere(name, is_guarded):
    """`jax_numpy_rank_promotion` and `jax_debug_nans` are set by people to find bugs of theirs."""
    lopt, theta = TABLE[name], perturbed_theta(name)
    params = {"w": jnp.ones((4, 3)), "b": jnp.zeros(3), "s": jnp.float32(1.0)}
    with jax.numpy_rank_promotion("raise"), jax.debug_nans(True):
        tx = lopt.transform(theta, horizon=10)
        tx = guarded(tx) if is_guarded else tx
        state = tx.init(params)
        for grads in (params, jax.tree.map(jnp.zeros_like, params)):
            updates, state = jax.jit(tx.update)(grads, state, params, value=jnp.float32(1.0))
    assert all(np.all(np.isfinite(u)) for u in jax.tree.leaves(updates))
