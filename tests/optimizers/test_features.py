import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2o.optimizers import features

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
    averages = jnp.array([[0.0, 2.0], [1.0, 1.0]])
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


def test_means_of_arrays_of_several_shapes(key):
    shapes = [(3, 4), (3, 1), (5,), (3, 4), (1, 4), (2, 1, 3)]
    keys = jax.random.split(key, len(shapes))
    arrays = [jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True)]
    expected = [np.mean(np.asarray(x), dtype=np.float64) for x in arrays]
    np.testing.assert_allclose(features.means(arrays), expected, rtol=1e-5, atol=1e-6)
    stacked = [jnp.stack([x, 2.0 * x]) for x in arrays]
    found = jax.jit(jax.vmap(features.means))(stacked)
    np.testing.assert_allclose(found, np.outer([1.0, 2.0], expected), rtol=1e-5, atol=1e-6)


def test_features_made_twice_are_those_made_once_and_so_are_their_gradients(key):
    x = jax.random.normal(key, (3, 4))
    make = lambda x, power: [x, x**2 * power, jnp.sum(x, axis=1, keepdims=True)]

    def twice(x):
        made, scales = features.with_rms_scales(make, x, jnp.float32(0.5))
        return features.scaled(made, scales)

    once = lambda x: features.rms_normalize(make(x, 0.5))
    for a, b in zip(jax.jit(twice)(x), once(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    total = lambda f: lambda x: sum(jnp.sum(jnp.sin(y)) for y in f(x))
    np.testing.assert_allclose(
        jax.grad(total(twice))(x), jax.grad(total(once))(x), rtol=1e-4, atol=1e-5
    )


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


def test_progress_fraction():
    found = features.progress_fraction(jnp.int32(50), 100)
    np.testing.assert_allclose(np.asarray(found)[[0, 4, 7]], np.tanh([4.7, -1.0, -5.0]), rtol=1e-5)


@pytest.mark.parametrize("as_in_velo", [False, True])
def test_loss_buffer_by_a_loop(as_in_velo):
    """VeLO's rule in numpy: ten averages, each beside the next slower one."""
    losses = [2.0, 3.9, 9.0, 1.0, 0.9, np.nan, 1.1]  # 9 counts as twice the largest average
    decays = np.exp(-1.0 / np.logspace(1, 2, 10))
    means, lowest, count = np.zeros(10), np.full(10, 1e12), 0
    buffer = features.loss_buffer_init(100)
    for loss in losses:
        buffer = features.loss_buffer_update(buffer, jnp.float32(loss), as_in_velo=as_in_velo)
        if np.isfinite(loss):
            corrected_for = count + as_in_velo
            largest = np.max(means / (1 - decays**corrected_for)) if count else loss
            means = decays * means + (1 - decays) * min(2 * abs(largest), loss)
            count += 1
            lowest = np.minimum(lowest, means / (1 - decays**count))
        expected = np.zeros(9)
        if count > 2:
            average = means / (1 - decays**count)
            gap = average[1:] - lowest[:-1]
            expected = np.clip((average[:-1] - lowest[:-1]) / np.maximum(gap, 1e-8) - 1, -1, 1)
        np.testing.assert_allclose(
            features.loss_buffer_features(buffer), expected, rtol=2e-3, atol=2e-3
        )
    assert buffer.count == 6 and np.max(np.abs(expected)) > 0.01
