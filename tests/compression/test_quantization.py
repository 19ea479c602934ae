"""Quantization against qwix, and by its own properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_trained import is_whole, trained_mlp

from l2o.compression.quantization import fake_quantize, quantize, quantize_weights

WEIGHTS = jax.random.normal(jax.random.key(0), (3, 20, 7)) * jnp.arange(1, 8)


@pytest.mark.parametrize("bits", range(2, 9))
def test_as_qwix(bits):
    qwix = pytest.importorskip("qwix")
    kind = {4: jnp.int4, 8: jnp.int8}.get(bits, f"int{bits}")
    theirs = qwix.quantize(WEIGHTS, kind, channelwise_axes=[2])
    values, scale = jax.jit(lambda w, b: quantize(w, b, ratios=(1.0,)))(WEIGHTS, bits)
    np.testing.assert_array_equal(values, theirs.qvalue.astype(jnp.float32))
    np.testing.assert_allclose(scale, theirs.scale.ravel(), rtol=1e-6)


@pytest.mark.parametrize("bits", range(2, 9))
def test_whole_numbers_within_their_bits_and_no_worse_than_the_largest_magnitude(bits):
    values, scale = quantize(WEIGHTS, bits)
    assert is_whole(values) and scale.shape == (7,)
    assert values.min() >= -(2 ** (bits - 1)) and values.max() <= 2 ** (bits - 1) - 1
    plain, plain_scale = quantize(WEIGHTS, bits, ratios=(1.0,))
    error = lambda v, s: np.sum((np.asarray(v * s) - WEIGHTS) ** 2, axis=(0, 1))
    assert np.all(error(values, scale) <= error(plain, plain_scale) + 1e-6)
    if bits == 2:
        assert np.all(error(values, scale) < 0.9 * error(plain, plain_scale))


def test_more_bits_lose_less_and_zeros_stay():
    errors = [float(jnp.sum((fake_quantize(WEIGHTS, b) - WEIGHTS) ** 2)) for b in range(2, 9)]
    assert np.all(np.diff(errors) < 0) and errors[-1] < 1e-3 * errors[0]
    np.testing.assert_array_equal(fake_quantize(jnp.zeros((2, 3)), 3), np.zeros((2, 3)))


def test_the_gradient_passes_the_rounding():
    through = lambda w: jnp.sum(fake_quantize(w, 3) ** 3)
    np.testing.assert_allclose(
        jax.grad(through)(WEIGHTS), 3 * fake_quantize(WEIGHTS, 3) ** 2, rtol=1e-5
    )


def test_layers_are_quantized_and_biases_are_not():
    model = trained_mlp()
    scheme = quantize_weights(model, bits=4)
    used = scheme.compress(model.params, (), jnp.array([2, 5, 8]))
    for (name, bits), layer in zip(
        (("first", 2), ("second", 5), ("last", 8)), scheme.budget.names, strict=True
    ):
        assert layer == f"{name}/kernel"
        levels = [len(np.unique(column)) for column in np.asarray(used[name]["kernel"]).T]
        assert 2 < max(levels) <= 2**bits
        np.testing.assert_array_equal(used[name]["bias"], model.params[name]["bias"])
