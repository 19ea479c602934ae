"""MuonMLP against its equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from design_cases import HORIZON, SMALL, assert_close, case, run

from l2o.optimizers.muon_mlp import matrix_shape, muon_mlp, orthogonalize

SHAPES = {"w": (5, 3), "kernel": (2, 2, 3, 4), "one": (1, 6), "b": (4,), "s": ()}


def theta_of(lopt, net=None, seed=1):
    """The untrained theta, with one of its networks perturbed."""
    theta = lopt.init(jax.random.key(0))
    if net:
        draw = lambda x: jax.random.normal(jax.random.key(seed), x.shape)
        theta |= {net: jax.tree.map(lambda x: x + 0.5 * draw(x), theta[net])}
    return theta


@pytest.mark.parametrize("shape", [(8, 8), (4, 30), (30, 4)])
def test_singular_values_become_about_one_and_vectors_stay(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    u, singular, v = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    found = u.T @ np.asarray(orthogonalize(x), np.float64) @ v.T
    values = np.diag(found)
    np.testing.assert_allclose(found - np.diag(values), 0.0, atol=1e-4)
    large = singular / np.linalg.norm(singular) > 0.01  # smaller ones take more steps
    assert np.all(values[large] > 0.65) and np.all(values < 1.25)
    assert large.sum() > 2


@pytest.mark.parametrize(
    ("shape", "sides"),
    [((), None), ((7,), None), ((1, 7, 1), None), ((3, 1, 7), (3, 7)), ((3, 3, 1, 8), (9, 8))],
)
def test_sides_of_a_matrix(shape, sides):
    assert matrix_shape(shape) == sides


def nominal(grads, params, shape, scaling):
    """The rule before learning, in float64; updates of one tensor."""
    unit = lambda x: x / np.sqrt(np.mean(x**2))
    sides, m, v, updates = matrix_shape(shape), 0.0, 0.0, []
    for t, (g, p) in enumerate(zip(grads, params, strict=True), start=1):
        g, p = np.asarray(g, np.float64), np.asarray(p, np.float64)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        n = 0.9 * m / (1 - 0.9**t) + 0.1 * g
        rate = 0.1 * (1 - (t - 1) / HORIZON)
        if sides is None:
            updates.append(-rate * unit(n / np.sqrt(v / (1 - 0.99**t))))
            continue
        x = n.reshape(sides)
        x = x / np.linalg.norm(x)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x - 4.7750 * a @ x + 2.0315 * a @ a @ x
        factor = 1.0 if scaling == "rms" else 10.0 / np.sqrt(max(sides))
        updates.append(-rate * (factor * unit(x).reshape(shape) + 0.2 * p))
    return updates


@pytest.mark.parametrize("scaling", ["rms", "spectral"])
def test_untrained_it_is_the_nominal_rule(scaling):
    lopt, cases = muon_mlp(0.1, 0.2, scaling), [case(SHAPES, seed) for seed in range(4)]
    found, _ = run(lopt.transform(theta_of(lopt), horizon=HORIZON), cases)
    for name, shape in SHAPES.items():
        of = lambda trees, name=name: [tree[name] for tree in trees]
        grads, params = of([c.grads for c in cases]), of([c.params for c in cases])
        expected = nominal(grads, params, shape, scaling)
        for x, y in zip(of(found), expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", ["direction", "mixture", "rate", "decay"])
def test_each_network_has_its_say(net):
    lopt, c = muon_mlp(), case(SHAPES)
    updates = lambda theta: run(lopt.transform(theta, horizon=HORIZON), [c])[0][0]
    found, before = updates(theta_of(lopt, net)), updates(theta_of(lopt))
    for name in ("w", "kernel"):
        assert np.max(np.abs(found[name] - before[name])) > 1e-5
    if net in ("mixture", "decay"):  # what no matrix is has one direction, and does not decay
        assert_close(found["b"], before["b"])
    rms = lambda x: float(jnp.sqrt(jnp.mean(jnp.square(x))))
    if net == "rate":
        assert_close(found["w"] / rms(found["w"]), before["w"] / rms(before["w"]))
        assert np.exp(-4) < rms(found["w"]) / rms(before["w"]) < np.exp(4)
    if net in ("direction", "mixture"):
        lopt = muon_mlp(weight_decay=0.0, scaling="rms")
        assert rms(updates(theta_of(lopt, net))["w"]) == pytest.approx(0.003, rel=1e-4)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_unit_of_the_loss_does_not_matter(factor):
    lopt = muon_mlp()
    theta = theta_of(lopt)
    for net in theta:
        theta |= {net: theta_of(lopt, net)[net]}
    tx = lopt.transform(theta, horizon=HORIZON)
    cases = [case(SMALL, seed) for seed in range(3)]
    scaled = [c._replace(grads=jax.tree.map(lambda g: factor * g, c.grads)) for c in cases]
    assert_close(run(tx, scaled)[0], run(tx, cases)[0], rtol=1e-3)


def test_there_are_two_scalings():
    with pytest.raises(
        ValueError, match=r"`scaling` must be rms or spectral; got 'mup'. Try spectral"
    ):
        muon_mlp(scaling="mup")  # pyright: ignore[reportArgumentType]
