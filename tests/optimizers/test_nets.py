import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2o.optimizers import nets


def random_net(key, sizes):
    """With units on both sides of every ReLU, so that outputs vary and a lost ReLU shows."""
    net = nets.mlp_init(key, sizes)
    return net | {
        "w1": jnp.abs(net["w1"]),
        "b0": jnp.linspace(0.5, 1.0, sizes[1]),
        "b1": jnp.linspace(-2.0, 1.0, sizes[2]),
        "b2": jnp.linspace(0.3, -0.3, sizes[3]),
    }


def test_init_statistics(key):
    net = nets.mlp_init(key, (64, 500, 2))
    assert {k: v.shape for k, v in net.items()} == {
        "w0": (64, 500),
        "b0": (500,),
        "w1": (500, 2),
        "b1": (2,),
    }
    # Truncated at ±2 without correction: standard deviation 0.8796 of the nominal 1/sqrt(inputs).
    np.testing.assert_allclose(jnp.std(net["w0"]) * 8, 0.8796, rtol=0.01)
    assert 1.95 < jnp.max(jnp.abs(net["w0"])) * 8 <= 2.0
    assert abs(float(jnp.mean(net["w0"]))) < 0.003
    assert not net["b0"].any() and not net["b1"].any()
    square = nets.mlp_init(key, (3, 3, 3))
    assert not np.allclose(square["w0"], square["w1"])


def test_apply_by_hand():
    net = {
        "w0": jnp.array([[1.0, -1.0], [2.0, 0.5]]),
        "b0": jnp.array([0.5, -0.25]),
        "w1": jnp.array([[3.0], [-4.0]]),
        "b1": jnp.array([0.125]),
    }
    x = jnp.array([[1.0, 1.0], [-2.0, 1.0]])  # hidden 3.5, -0.75 and 0.5, 2.25 before the ReLU
    np.testing.assert_allclose(nets.mlp_apply(net, x), [[10.625], [-7.375]])
    tanh = np.tanh([3.5, -0.75]) @ [3.0, -4.0] + 0.125
    np.testing.assert_allclose(nets.mlp_apply(net, x[0], jnp.tanh), [tanh], rtol=1e-6)


FEATURE_SHAPES = {
    "vector": ((3,), [(3,), (3,), (3,)]),
    "rows and columns": ((4, 3), [(4, 3), (4, 1), (1, 3)]),
    "a narrow first feature": ((4, 3), [(4, 1), (4, 3), (1, 1)]),
    "4-D": ((2, 1, 3, 2), [(2, 1, 3, 2), (2, 1, 1, 2), (2, 1, 3, 1)]),
}


@pytest.mark.parametrize("hidden", [3, nets.SCALAR_WIDTH + 1])
def test_scales_fold_into_the_first_layer(hidden, key):
    net = random_net(key, (4, hidden, 3, 2))
    keys = jax.random.split(key, 3)
    features = [jax.random.normal(k, (5,)) for k in keys]
    scales = jnp.array([0.5, 2.0, -1.0])
    bias = nets.folded_bias(net, jnp.array([0.7]))
    expected = nets.mlp_per_parameter(
        net, [x * s for x, s in zip(features, scales, strict=True)], bias
    )
    found = nets.mlp_per_parameter(net, features, bias, scales)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("hidden", [3, nets.SCALAR_WIDTH, nets.SCALAR_WIDTH + 1])
@pytest.mark.parametrize("num_shared", [0, 2])
@pytest.mark.parametrize("shapes", FEATURE_SHAPES.values(), ids=FEATURE_SHAPES)
def test_per_parameter_equals_the_matrix_form(hidden, num_shared, shapes, key):
    full, each = shapes
    net = random_net(key, (3 + num_shared, hidden, 3, 2))
    keys = jax.random.split(key, 4)
    features = [jax.random.normal(k, shape) for k, shape in zip(keys, each, strict=False)]
    shared = jax.random.normal(keys[3], (num_shared,))
    bias = nets.folded_bias(net, shared) if num_shared else None
    columns = [jnp.broadcast_to(x, full) for x in features] + [jnp.full(full, s) for s in shared]
    expected = nets.mlp_apply(net, jnp.stack(columns, axis=-1))
    found = jax.jit(nets.mlp_per_parameter)(net, features, bias)
    assert len(found) == 2
    for j, output in enumerate(found):
        np.testing.assert_allclose(
            jnp.broadcast_to(output, full), expected[..., j], rtol=1e-4, atol=1e-5
        )
    assert np.ptp(expected[..., 0]) > 0.01


@pytest.mark.parametrize("hidden", [3, nets.SCALAR_WIDTH + 1])
@pytest.mark.parametrize("shapes", FEATURE_SHAPES.values(), ids=FEATURE_SHAPES)
def test_per_parameter_has_the_gradient_of_the_matrix_form(hidden, shapes, key):
    full, each = shapes
    k_net, k_cost, *keys = jax.random.split(key, 5)
    net = random_net(k_net, (4, hidden, 3, 2))
    features = [jax.random.normal(k, shape) for k, shape in zip(keys, each, strict=False)]
    weights = jax.random.normal(k_cost, (2, *full))
    scales = jnp.linspace(0.5, -2.0, 3)

    def by_lists(net, features, shared, scales):
        bias = nets.folded_bias(net, shared)
        outputs = nets.mlp_per_parameter(net, features, bias, scales)
        return sum(jnp.sum(w * x) for w, x in zip(weights, outputs, strict=True))

    def by_matrices(net, features, shared, scales):
        columns = [jnp.broadcast_to(x, full) * s for x, s in zip(features, scales, strict=True)]
        columns.append(jnp.full(full, shared[0]))
        outputs = nets.mlp_apply(net, jnp.stack(columns, axis=-1))
        return jnp.sum(weights * jnp.moveaxis(outputs, -1, 0))

    arguments = net, features, jnp.array([0.7]), scales
    found, expected = (
        jax.jit(jax.grad(f, argnums=(0, 1, 2, 3)))(*arguments) for f in (by_lists, by_matrices)
    )
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * float(jnp.max(jnp.abs(b))))
