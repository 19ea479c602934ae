"""Layers in one array are updated as layers in arrays of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from design_cases import HORIZON, NAMES, TABLE, perturbed_theta
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import l2o
from l2o.stacks import stacked

LAYERS = 4
ONE_AGENT_AN_ARRAY = "per_tensor_controller"


def network(seed: int):
    """Layers of very different scales, in arrays of their own, and a tensor that is no layer."""
    rng = np.random.default_rng(seed)
    draw = lambda scale, *shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
    layers = [{"w": draw(10.0**i, 4, 3), "b": draw(10.0**i, 3)} for i in range(LAYERS)]
    return {"layers": layers, "head": draw(1.0, 3, 2)}


def in_one_array(tree, axis: int):
    layers = jax.tree.map(lambda *x: jnp.stack(x, axis), *tree["layers"])
    return tree | {"layers": layers}


def train(tx, transform=lambda tree: tree):
    params, found = transform(network(0)), []
    state = tx.init(params)
    update = jax.jit(tx.update)
    for seed in range(3):
        updates, state = update(transform(network(seed + 1)), state, params, value=1.0 + seed)
        found.append(updates)
    return found, state


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", sorted({*NAMES} - {ONE_AGENT_AN_ARRAY}))
def test_updates_are_those_of_layers_apart(name, axis):
    tx = TABLE[name].transform(perturbed_theta(name), horizon=HORIZON)
    stack = lambda tree: in_one_array(tree, axis)
    expected, _ = train(tx)
    together = stacked(tx, {"layers": axis})
    found, state = train(together, stack)
    for x, y in zip(found, expected, strict=True):
        scale = lambda leaf: np.max(np.abs(leaf))
        for one, other in zip(jax.tree.leaves(x), jax.tree.leaves(stack(y)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * scale(other))
    _, plain = train(tx, stack)
    if name in ("mlp_lopt", "nominal_mlp"):  # of others the shapes of what is packed differ
        assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, plain)
    assert jax.tree.structure(state) == jax.tree.structure(plain)
    same_shape = lambda x, p: np.testing.assert_equal(jnp.shape(x), p.shape)
    optax.tree.map_params(together, same_shape, state, stack(network(0)))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", sorted({*NAMES} - {ONE_AGENT_AN_ARRAY}))
def test_layers_lie_on_devices_of_their_own_under_explicit_axes(name, axis):
    tx = stacked(TABLE[name].transform(perturbed_theta(name), horizon=HORIZON), {"layers": axis})
    stack = lambda tree: in_one_array(tree, axis)
    expected, _ = train(tx, stack)
    mesh = jax.make_mesh((2,), ("stages",), axis_types=(AxisType.Explicit,))
    spec = PartitionSpec(*[None] * axis, "stages")

    def spread(tree):
        tree = stack(tree)
        return tree | {"layers": jax.device_put(tree["layers"], NamedSharding(mesh, spec))}

    with jax.set_mesh(mesh):
        found, _ = train(tx, spread)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6 * np.max(np.abs(y)))
    for x in jax.tree.leaves(found[-1]["layers"]):
        assert x.sharding.spec[axis] == "stages"


def test_without_a_word_layers_in_one_array_are_one_tensor():
    tx = l2o.optimizer("digits", horizon=HORIZON)
    stack = lambda tree: in_one_array(tree, 0)
    expected, found, plain = (
        train(tx)[0],
        *(
            train(optimizer, stack)[0]
            for optimizer in (l2o.optimizer("digits", HORIZON, stacked={"layers": 0}), tx)
        ),
    )
    away = lambda tree: float(optax.tree.norm(optax.tree.sub(tree[0], stack(expected[0]))))
    assert away(found) < 1e-5 * float(optax.tree.norm(expected[0])) < away(plain)


def test_the_longest_path_says_the_axis():
    seen = {}

    def init(params):
        seen.update(params)
        return ()

    look = optax.GradientTransformationExtraArgs(init, lambda updates, *_, **__: (updates, ()))
    params = {"a": {"b": jnp.ones((2, 3)), "c": jnp.ones((2, 3))}, "ab": jnp.ones(2)}
    stacked(look, {"a": 0, "a/b": -1}).init(params)
    assert (seen["a"]["b"].axis, seen["a"]["c"].axis) == (1, 0)
    assert isinstance(seen["ab"], jax.Array)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            {"layer": 0},
            "`stacked` must name paths of parameters; got layer, at which there is nothing",
        ),
        ({"layers": 2}, "got 2 for layers/b of shape (4, 3)"),
        ({"layers": "0"}, "`stacked` must be an integer for each path; got {'layers': '0'}"),
        ({"layers": True}, "`stacked` must be an integer for each path; got {'layers': True}"),
    ],
)
def test_mistakes_are_told_in_a_line(axes, message):
    with pytest.raises(ValueError) as caught:
        stacked(l2o.optimizer("digits", HORIZON), axes).init(in_one_array(network(0), 0))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_agent_for_each_array_cannot_be_one_for_each_layer():
    tx = TABLE[ONE_AGENT_AN_ARRAY].transform(perturbed_theta(ONE_AGENT_AN_ARRAY), horizon=HORIZON)
    with pytest.raises(ValueError, match=r"`stacked` must be empty for per_tensor_controller"):
        stacked(tx, {"layers": 0}).init(in_one_array(network(0), 0))


def test_masks_labels_and_what_is_no_number_stand_in_a_chain():
    tx = l2o.optimizer("digits", HORIZON)
    tree = in_one_array(network(0), 0)
    layers = {"layers": {"w": True, "b": True}, "head": False}
    labels = {"layers": {"w": "a", "b": "a"}, "head": "z"}
    for chain in (
        optax.chain(tx, optax.add_decayed_weights(1e-3, mask=layers)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.masked(tx, layers)),
        optax.partition({"a": tx, "z": optax.adam(1e-3)}, labels),
        optax.scale(0.1),
    ):
        together = stacked(chain, {"layers/": np.int64(0)})
        updates, state = together.update(tree, together.init(tree), tree, value=1.0)
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, tree)
        together.update(tree, state, tree, value=1.0)
    model = {"layers": {"w": tree["layers"]["w"], "f": jnp.tanh}, "frozen": jnp.ones(2)}
    grads = {"layers": {"w": tree["layers"]["w"], "f": None}, "frozen": None}
    together = stacked(tx, {"layers": 0})
    updates, _ = together.update(grads, together.init(model), model, value=1.0)
    assert updates["frozen"] is None and updates["layers"]["w"].shape == (LAYERS, 4, 3)
