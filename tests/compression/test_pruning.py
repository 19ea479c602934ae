"""Masks of the largest weights; units that are really gone; what a user tells about them."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_trained import conv_net, trained_mlp

import l2o
from l2o.compression.budget import project
from l2o.compression.layers import Layer, leaves_by_name, uses
from l2o.compression.pruning import prune_weights, ranks
from l2o.compression.units import Group, Member, find_groups, mask_units, prune_units, remove_units
from l2o.supervision.supervised import SPLITS


def test_a_layer_keeps_its_largest_weights():
    model = trained_mlp()
    scheme = prune_weights(model, keep=0.2)
    counts = np.array([100, 17, 33])
    pruned = leaves_by_name(scheme.compress(model.params, scheme.prepare(model.params), counts))
    before = leaves_by_name(model.params)
    for name, count in zip(scheme.budget.names, counts, strict=True):
        kept, gone = np.asarray(pruned[name]) != 0, np.asarray(pruned[name]) == 0
        assert kept.sum() == count
        sizes = np.abs(np.asarray(before[name]))
        assert sizes[kept].min() >= sizes[gone].max()
        np.testing.assert_array_equal(pruned[name][kept], before[name][kept])
    np.testing.assert_array_equal(pruned["first/bias"], before["first/bias"])


def test_ties_are_broken():
    assert sorted(ranks(jnp.ones((3, 2))).ravel().tolist()) == list(range(6))


def test_groups_of_a_chain():
    groups = {group.layer: group for group in find_groups(conv_net())}
    assert list(groups) == ["conv/kernel", "strided/kernel", "dense/kernel"]
    names = {m.name for m in groups["conv/kernel"].members}
    assert names == {
        *("conv/kernel", "conv/bias", "strided/kernel"),
        *("norm/scale", "norm/bias", "norm/mean", "norm/var"),
    }
    flattened = groups["strided/kernel"]
    assert flattened.size == 6 and Member("dense/kernel", 0) in flattened.members


@pytest.mark.parametrize("model", [trained_mlp, conv_net])
def test_smaller_arrays_compute_the_same(model):
    model = model()
    scheme, groups = prune_units(model, keep=0.4)
    counts = np.asarray(scheme.budget.highest) // 2
    guide = scheme.prepare(model.params)
    masked = scheme.compress(model.params, guide, counts)
    kept = [np.asarray(r < c) for r, c in zip(guide, counts, strict=True)]
    smaller = remove_units(model.params, groups, kept)
    inputs = model.data["test"].inputs[:20]
    expected = model.apply(masked, inputs)
    np.testing.assert_allclose(model.apply(smaller, inputs), expected, rtol=1e-4, atol=1e-5)
    assert np.std(expected) > 0.01
    size = sum(leaf.size for leaf in jax.tree.leaves(smaller))
    assert size == int(scheme.budget.cost(jnp.asarray(counts))) < model.size


def test_units_go_by_their_weights():
    model = trained_mlp()
    params = jax.tree.map(lambda x: x, model.params)
    params["first"]["kernel"] = params["first"]["kernel"].at[:, 3].multiply(1e-3)
    params["second"]["kernel"] = params["second"]["kernel"].at[5].multiply(1e-3)
    scheme, _ = prune_units(model, keep=0.5)
    first = np.asarray(scheme.prepare(params)[0])
    assert sorted(first[[3, 5]]) == [14, 15]


def residual(params, x):
    hidden = x @ params["in"]
    hidden = hidden + jax.nn.relu(hidden @ params["up"] + params["bias"]) @ params["down"]
    return hidden @ params["out"]


def residual_model(units=None, frozen=frozenset()):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = {"in": (4, 6), "up": (6, 8), "down": (8, 6), "out": (6, 2)}
    params = {
        name: jax.random.normal(k, shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    } | {"bias": jnp.ones(8)}
    rows = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32), np.arange(16) % 2
    data = dict.fromkeys(SPLITS, rows)
    return l2o.trained_model("residual", params, residual, data, frozen=frozen, units=units)


def test_a_user_tells_what_is_not_clear():
    with pytest.raises(ValueError, match="`units` of in are not clear") as error:
        prune_units(residual_model(), keep=0.5)
    assert "\n" not in str(error.value) and "Try units={" in str(error.value)
    model = residual_model(units={"up": [("bias", 0), ("down", 0)]})
    scheme, groups = prune_units(model, keep=0.7)
    assert groups == (Group("up", 8, (Member("up", 1), Member("bias", 0), Member("down", 0))),)
    result = l2o.compress(model, keep=0.7, units=True, search="uniform")
    assert result.params["up"].shape[1] == result.params["bias"].shape[0] == result.counts["up"] < 8
    assert scheme.budget.names == ("up",)


@pytest.mark.parametrize(
    ("middle", "inputs", "why"),
    [
        (lambda x: x.reshape(-1, 3, 2).sum(axis=1), 2, "b has 2 inputs"),
        (lambda x: x.reshape(len(x), 6), 6, "a network without some does not run"),
        (lambda x: x - x.mean(axis=1, keepdims=True), 6, "computes something else"),
    ],
)
def test_what_is_not_clear(middle, inputs, why):
    rows = np.eye(4, dtype=np.float32), np.arange(4) % 2
    params = {"a": np.arange(24.0).reshape(4, 6), "b": np.arange(2.0 * inputs).reshape(inputs, 2)}
    apply = lambda params, x: middle(x @ params["a"]) @ params["b"]
    model = l2o.trained_model("fixed", params, apply, dict.fromkeys(SPLITS, rows))
    with pytest.raises(ValueError, match=f"`units` of a are not clear: .*{why}") as error:
        prune_units(model, keep=0.5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({}, "`units` must name at least one layer; got none"),
        ({"upp": []}, "`units` must be of layers of residual; got upp. Try up."),
        ({"bias": [("up", 1), ("down", 0)]}, "`units` must be of layers of residual; got bias"),
        ([("bias", 0)], "`units` must be a mapping from layers to lists of pairs; got [('bias',"),
        (
            {"up": ["bias"]},
            "`units` must be a mapping from layers to lists of pairs; got {'up': ['b",
        ),
        (
            {"up": ("bias", 0)},
            "`units` must be a mapping from layers to lists of pairs; got {'up': ('b",
        ),
        ({"up": [("bias", 0.0)]}, "`units` must be a mapping from layers to lists of pairs; got"),
        ({"up": [("bais", 0)]}, "`units` must name arrays of residual; got bais"),
        (
            {"up": [("down", 1)]},
            "`units` of up must name axes of 8 units, or a multiple; got axis 1",
        ),
        (
            {"up": [("bias", 1)]},
            "`units` of up must name axes of 8 units, or a multiple; got axis 1",
        ),
        ({"up": [("down", 0)]}, "`units` of up are not clear"),
    ],
)
def test_mistakes_in_units(units, message):
    with pytest.raises(ValueError) as error:
        prune_units(residual_model(units), keep=0.7)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_frozen_layers_have_no_units_to_remove():
    model = residual_model({"up": [("bias", 0), ("down", 0)]}, frozenset({"up"}))
    with pytest.raises(ValueError, match="`units` must be of layers of residual; got up"):
        prune_units(model, keep=0.7)


def test_masked_units_are_zero_everywhere():
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones((4, 5))}
    group = Group("a", 2, (Member("a", 1), Member("b", 0)))
    masked = mask_units(params, (group,), [jnp.array([True, False])])
    assert masked["a"].sum(axis=0).tolist() == [3, 0]
    assert masked["b"].sum(axis=1).tolist() == [5, 0, 5, 0]


def test_costs_that_int32_does_not_hold_are_told_in_their_own_unit():
    """Weights that are used often enough for 4·10⁹ multiply-adds a row."""
    times, kernel = 4_000_000, np.ones((100, 10), np.float32)
    apply = lambda params, x: jax.lax.scan(
        lambda h, _: (h + (x @ params["w"])[:, :1], None), x[:, :1], None, length=times
    )[0]
    layer = uses(apply, {"w": kernel}, jnp.ones((1, 100)))
    assert layer.multiply_adds["w"] == 1000 * times
    model = types.SimpleNamespace(
        layers=[Layer("w", kernel.shape, 1000 * times)], size=1000, params={"w": kernel}
    )
    budget = prune_weights(model, flops=0.5).budget
    assert budget.scale == 4
    counts = np.asarray(project(budget, jnp.zeros(1)))
    np.testing.assert_allclose(budget.spent(counts) * budget.scale, 0.5 * 1000 * times, rtol=1e-6)
    with pytest.raises(ValueError, match=r"4000000 multiply-adds; got 0\.0001, .* Try flops=0.001"):
        prune_weights(model, flops=0.0001)
