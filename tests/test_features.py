import jax.numpy as jnp
import numpy as np
import pytest

from l2o import features

pytestmark = pytest.mark.usefixtures("strict_ranks")


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((), None),
        ((5,), None),
        ((2, 3), (0, 1)),
        ((3, 2), (1, 0)),
        ((4, 4), (0, 1)),
        ((3, 3, 2, 4), (1, 3)),
        ((7, 1, 5), (2, 0)),
    ],
)
def test_factored_axes(shape, axes):
    """The two largest axes, smaller first; ties in order of the axes, as NumPy's argsort."""
    assert features.factored_axes(shape) == axes
    if axes:
        assert axes == tuple(np.argsort(shape, kind="stable")[-2:].tolist())


def test_moving_averages_by_hand():
    averages = (jnp.array([0.0, 2.0]), jnp.array([1.0, 1.0]))
    x = jnp.array([10.0, -10.0])
    first, second = features.moving_averages(averages, x, (0.9, 0.5))
    np.testing.assert_allclose(first, [1.0, 0.8], rtol=1e-6)
    np.testing.assert_allclose(second, [5.5, -4.5], rtol=1e-6)
    with pytest.raises(ValueError):
        features.moving_averages(averages, x, (0.9,))


def test_progress_embedding():
    found = features.progress_tanh(jnp.int32(300))
    scales = np.array([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])
    np.testing.assert_allclose(found, np.tanh(300 / scales - 1), rtol=1e-5, atol=1e-6)


def test_decays_from_offsets():
    """Offset ω multiplies 1 - β by exp(10 ω)."""
    found = features.decays_from_offsets((0.9, 0.99), jnp.array([0.0, 0.01]))
    np.testing.assert_allclose(found, [0.9, 1 - 0.01 * np.exp(0.1)], rtol=1e-6)


def test_rms_normalize():
    x = jnp.array([[3.0, -4.0]])
    (found,) = features.rms_normalize([x])
    np.testing.assert_allclose(found, x / np.sqrt(12.5 + 1e-5), rtol=1e-5)
    (tiny,) = features.rms_normalize([jnp.array([1e-4, 1e-4])])
    np.testing.assert_allclose(tiny, 1e-4 / np.sqrt(1e-8 + 1e-5), rtol=1e-5)
    row = jnp.array([[1.0], [2.0]])
    narrow, wide = features.rms_normalize([row, jnp.broadcast_to(row, (2, 5))])
    assert narrow.shape == (2, 1)
    np.testing.assert_allclose(jnp.broadcast_to(narrow, (2, 5)), wide, rtol=1e-6)


def test_clipped_rsqrt():
    found = features.clipped_rsqrt(jnp.array([4.0, 0.0, -1.0]))
    np.testing.assert_allclose(found, [0.5, 1e-9**-0.5, 1e-9**-0.5], rtol=1e-5)
    np.testing.assert_allclose(features.clipped_rsqrt(jnp.float32(0.0), floor=0.25), 2.0)
