"""Families of tasks: their data and losses against other sources of the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets

from l2o.tasks import digits, images
from l2o.tasks.factorisation import NOISE, matrix_completion
from l2o.tasks.families import sized_family
from l2o.tasks.networks.autoencoder import Reconstruction
from l2o.tasks.poisson import MODES, poisson_network
from l2o.tasks.quadratic import rotated_quadratic
from l2o.tasks.tabular import table


def test_varied_tasks_are_trained_on_and_plain_ones_of_all_sizes_reported_on():
    asked = []

    def make(name, size, varied):
        asked.append((name, size, varied))
        return rotated_quadratic(size)

    with pytest.raises(ValueError, match="quadratic_2 twice"):
        sized_family("f", make, {"a": 2}, {"b": 3})
    assert asked == [("f_a_varied", 2, True), ("f_a", 2, False), ("f_b", 3, False)]


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "diabetes"])
def test_tables_are_scikit_learns_standardised_on_training_rows(name):
    options = {"scaled": False} if name == "diabetes" else {}
    whole = getattr(datasets, f"load_{name}")(**options)
    splits = table(name)
    inputs = np.concatenate([part.inputs for part in splits.values()])
    targets = np.concatenate([part.targets for part in splits.values()])
    assert inputs.shape == whole.data.shape
    np.testing.assert_allclose(splits["train"].inputs.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(splits["train"].inputs.std(axis=0), 1.0, rtol=1e-4)
    # Every row is there once: standardised alike, a sum of its columns tells it from the others.
    sums = [
        np.sort((rows - rows.mean(axis=0)) / rows.std(axis=0) @ np.arange(1.0, rows.shape[1] + 1))
        for rows in (inputs, whole.data)
    ]
    np.testing.assert_allclose(*sums, atol=1e-3)
    if name == "diabetes":
        assert np.corrcoef(np.sort(targets[:, 0]), np.sort(whole.target))[0, 1] > 1 - 1e-6
    else:
        assert np.bincount(targets).tolist() == np.bincount(whole.target).tolist()


def test_true_factors_leave_the_noise(key):
    task = matrix_completion("m", (64, 64), 4)
    instance = task.sample(key)
    u, s, vt = np.linalg.svd(instance["matrix"])
    params = {"left": jnp.asarray(u[:, :8] * s[:8]), "right": jnp.asarray(vt[:8].T)}
    rows = task.all_rows(instance, (), "train")
    assert task.loss(params, rows, instance) < 0.5 * NOISE**2
    zero = jax.tree.map(jnp.zeros_like, params)

    # Zeros are an argument: XLA's CPU backend gets products with constant zeros wrong (0.10.2).
    def loss_of(params, key):
        instance = task.sample(key)
        return task.loss(params, task.all_rows(instance, (), "train"), instance)

    losses = jax.jit(jax.vmap(loss_of, (None, 0)))(zero, jax.random.split(key, 64))
    assert abs(np.mean(losses) - task.loss_scale) < 4.0 * np.std(losses) / 8.0


def test_entries_of_splits_are_all_entries_once(key):
    task = matrix_completion("m", (8, 6), 2)
    instance = task.sample(key)
    parts = [task.all_rows(instance, (), split) for split in ("train", "valid", "test")]
    assert [len(part) for part in parts] == [24, 12, 12]
    assert sorted(np.concatenate(parts).tolist()) == list(range(48))


def test_the_loss_of_an_equation_is_its_residual_by_finite_differences(key):
    task = poisson_network("p", (8,))
    amplitudes, params = task.sample(key), task.init(key, None)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    points = np.linspace(0.1, 0.9, 7)

    def solution(x):
        hidden = np.tanh(x[:, None] @ params["w0"] + params["b0"])
        return x * (1.0 - x) * (hidden @ params["w1"] + params["b1"])[:, 0]

    h = 1e-4
    curvature = (solution(points + h) - 2.0 * solution(points) + solution(points - h)) / h**2
    orders = np.pi * np.arange(1, MODES + 1)
    sines = np.sin(points[:, None] * orders)
    forcing = -sines @ (np.asarray(amplitudes) * orders**2)
    expected = 0.5 * np.mean((curvature - forcing) ** 2) / np.pi**4
    found = task.loss(jax.tree.map(jnp.float32, params), jnp.float32(points), amplitudes)
    assert found == pytest.approx(expected, rel=1e-3)
    error = np.sqrt(np.mean((solution(points) - sines @ np.asarray(amplitudes)) ** 2))
    metrics = task.metrics(jax.tree.map(jnp.float32, params), jnp.float32(points), amplitudes)
    assert metrics["error"] == pytest.approx(error, rel=1e-3)


def test_the_scale_of_an_equation_is_the_loss_of_zero(key):
    task = poisson_network("p", (8,))
    params = jax.tree.map(jnp.zeros_like, task.init(key, None))
    points = jnp.linspace(0.0, 1.0, 513)
    loss = jax.jit(jax.vmap(lambda key: task.loss(params, points, task.sample(key))))
    losses = loss(jax.random.split(key, 1000))
    assert abs(np.mean(losses) - task.loss_scale) < 4.0 * np.std(losses) / 1000**0.5


def test_the_evidence_bound_is_cross_entropy_and_divergence():
    logits, pixels = np.array([[0.5, -1.0, 2.0]]), np.array([[0.0, 0.25, 1.0]])
    q = 1.0 / (1.0 + np.exp(-logits))
    bits = -np.mean(pixels * np.log(q) + (1.0 - pixels) * np.log(1.0 - q))
    found = Reconstruction(jnp.asarray(logits), jnp.array([0.6]))
    criterion = images.evidence_bound()
    np.testing.assert_allclose(criterion.losses(found, pixels), [bits + 0.2], rtol=1e-5)
    mean = np.mean(digits.digits()["train"].pixels, axis=0).clip(1e-6, 1 - 1e-6)
    scale = criterion.scale(found, digits.digits()["train"].pixels)
    entropy = -np.mean(mean * np.log(mean) + (1 - mean) * np.log(1 - mean))
    assert scale == pytest.approx(entropy, rel=1e-5)
