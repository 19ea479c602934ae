"""No action exceeds a budget, on random networks; and what is left over is used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_trained import conv_net, schemes, trained_mlp

from l2o.compression.budget import LARGEST, Budget, in_whole_units, project
from l2o.compression.layers import leaves_by_name
from l2o.compression.pruning import prune_weights
from l2o.compression.quantization import quantize_weights
from l2o.compression.units import prune_units


def additive(prices, counts):
    return jnp.sum(prices * counts)


def chain(prices, counts):
    """Units of a chain: inputs of 1, and outputs of as many as the last price."""
    following = jnp.append(counts[1:], prices[-1])
    return counts[0] * prices[0] + jnp.sum(counts * following)


@pytest.mark.parametrize("cost", [additive, chain])
@pytest.mark.parametrize("groups", [1, 2, 5])
def test_a_thousand_random_networks_keep_their_budgets(cost, groups):
    rng = np.random.default_rng(groups)
    networks = 1000 // 3 + 1
    largest = 10 ** rng.uniform(0, 5 if cost is additive else 3, (networks, groups))
    highest = np.maximum(largest, 1).astype(np.int32)
    lowest = np.minimum(rng.integers(1, 3, highest.shape), highest).astype(np.int32)
    prices = rng.integers(1, 500, highest.shape).astype(np.int32)
    price = jax.vmap(functools.partial(cost))
    least, most = price(prices, lowest), price(prices, highest)
    limits = np.asarray(least + rng.uniform(0, 1, networks) ** 3 * (most - least), np.int32)
    actions = rng.uniform(-1.5, 1.5, highest.shape)

    @jax.jit
    @jax.vmap
    def projected(lowest, highest, prices, limit, action):
        names = tuple(map(str, range(groups)))
        bought = functools.partial(cost, prices)
        budget = Budget(names, "parameters", lowest, highest, bought, limit)
        counts = project(budget, action)
        one_more = jnp.eye(groups, dtype=jnp.int32) + counts
        fits = (jax.vmap(bought)(one_more) <= limit) & (counts < highest)
        return counts, jnp.any(fits)

    counts, is_left_over = projected(lowest, highest, prices, limits, actions)
    assert np.all(counts >= lowest) and np.all(counts <= highest)
    spent = price(prices, counts)
    assert np.all(spent <= limits)
    assert not np.any(is_left_over)  # nobody can have one more


@pytest.mark.parametrize("model", [trained_mlp, conv_net])
def test_what_is_really_kept_is_within_the_budget(model):
    model = model()
    leaves = leaves_by_name(model.params)
    for name, scheme in schemes(model).items():
        budget = scheme.budget
        actions = np.random.default_rng(0).normal(size=(30, len(budget.names)))
        guide = scheme.prepare(model.params)

        @jax.jit
        @jax.vmap
        def kept(action, scheme=scheme, guide=guide):
            counts = project(scheme.budget, action)
            ones = jax.tree.map(jnp.ones_like, model.params)
            used = scheme.compress(model.params if scheme.name == "bits" else ones, guide, counts)
            return counts, jax.tree.map(jnp.count_nonzero, used)

        counts, nonzero = kept(actions)
        nonzero = leaves_by_name(nonzero)
        if name in ("keep", "units"):
            share = 0.2 if name == "keep" else 0.4
            assert np.all(sum(nonzero.values()) <= share * model.size)
        elif name == "bits":
            sizes = np.array([leaves[n].size for n in budget.names])
            assert np.all(counts @ sizes <= 3.5 * sizes.sum())
        else:
            share = 0.3 if name == "flops" else 0.5
            uses = {x.name: x.multiply_adds // x.size for x in model.layers}
            whole = sum(x.multiply_adds for x in model.layers)
            assert np.all(sum(uses[n] * nonzero[n] for n in uses) <= share * whole)


def test_uniform_and_monotone():
    highest = np.array([1000, 400, 50])
    budget = Budget(("a", "b", "c"), "parameters", np.ones(3, int), highest, jnp.sum, 290)
    counts = jax.jit(functools.partial(project, budget))
    np.testing.assert_allclose(counts(jnp.zeros(3)) / highest, 0.2, rtol=0.05)
    wishes = np.linspace(-1, 1, 21)
    got = np.array([counts(jnp.array([0.0, wish, 0.3])) for wish in wishes])
    assert np.all(np.diff(got[:, 1]) >= 0) and got[-1, 1] > 2 * got[0, 1]
    assert np.all(np.diff(got[:, 0]) <= len(highest))  # less, but for what rounding left over
    np.testing.assert_array_equal(counts(jnp.array([jnp.nan, 0, 0])), counts(jnp.zeros(3)))


def test_all_of_the_budget_is_all_of_the_network():
    budget = Budget(("a", "b"), "bits", np.array([2, 2]), np.array([8, 8]), jnp.sum, 16)
    for action in ([0.0, 0.0], [-1.0, 1.0]):
        assert project(budget, jnp.array(action)).tolist() == [8, 8]


def test_large_costs_are_counted_in_larger_units():
    costs, limit, scale = in_whole_units(np.array([10, 7]), 4 * LARGEST, 2 * LARGEST)
    assert costs.tolist() == [3, 2] and (limit, scale) == (LARGEST // 2, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: prune_weights(m, keep=0.02), "`keep` must leave room for the smallest network"),
        (lambda m: prune_weights(m, keep=1.0), "`keep` must be above 0 and below 1; got 1.0"),
        (lambda m: prune_weights(m, flops=0.0), "`flops` must be above 0 and below 1; got 0.0"),
        (lambda m: prune_units(m, keep=0.05), "`keep` must leave room for the smallest network"),
        (lambda m: prune_units(m, flops=0.01), "`flops` must leave room for the smallest network"),
        (lambda m: quantize_weights(m, bits=1), "`bits` must be between 2 and 8; got 1"),
        (lambda m: quantize_weights(m, bits=9), "`bits` must be between 2 and 8; got 9"),
        (lambda m: quantize_weights(m, bits=float("nan")), "`bits` must be between 2 and 8"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError) as error:
        make(trained_mlp())
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_what_an_error_suggests_works():
    with pytest.raises(ValueError, match="smallest network") as error:
        prune_weights(trained_mlp(), keep=0.001)
    keep = float(str(error.value).rpartition("keep=")[2].rstrip("."))
    assert prune_weights(trained_mlp(), keep=keep).budget.limit > 0
