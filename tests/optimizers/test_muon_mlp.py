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


def newton_schulz(x):
    """Five steps in float64, as published."""
    x = np.asarray(x, np.float64) / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


@pytest.mark.parametrize("shape", [(8, 8), (4, 30), (30, 4), (32, 128)])
@pytest.mark.parametrize("spread", [1e1, 1e3, 1e8])
def test_orthogonalize_is_five_newton_schulz_steps(shape, spread):
    """Of singular values that are far apart, too, up to the rank that float32 knows."""
    rng, smaller = np.random.default_rng(0), min(shape)
    u, v = (np.linalg.qr(rng.normal(size=(side, smaller)))[0] for side in shape)
    x = u * np.geomspace(1.0, 1.0 / spread, smaller) @ v.T
    np.testing.assert_allclose(
        orthogonalize(jnp.asarray(x, jnp.float32)), newton_schulz(x), atol=2e-4
    )


def test_singular_values_become_about_one():
    x = np.random.default_rng(0).normal(size=(6, 40))
    values = np.linalg.svd(orthogonalize(jnp.asarray(x, jnp.float32)), compute_uv=False)
    assert np.all(values > 0.65) and np.all(values < 1.25)


@pytest.mark.parametrize(
    ("shape", "sides"),
    [((), None), ((7,), None), ((1, 7, 1), None), ((3, 1, 7), (3, 7)), ((3, 3, 1, 8), (9, 8))],
)
def test_sides_of_a_matrix(shape, sides):
    assert matrix_shape(shape) == sides


def reference(theta, cases, name, shape, scaling):
    """The equations of the module in float64; updates of one tensor."""
    theta = jax.tree.map(lambda x: np.asarray(x, np.float64), theta)
    unit = lambda x: x / np.sqrt(np.mean(x**2))
    cosine = lambda x, y: np.mean(unit(x) * unit(y))
    sides, fast, slow, v, losses, updates = matrix_shape(shape), 0.0, 0.0, 0.0, np.zeros(2), []
    for t, c in enumerate(cases, start=1):
        g, p = (np.asarray(tree[name], np.float64) for tree in (c.grads, c.params))
        fast, slow, v = 0.9 * fast + 0.1 * g, 0.99 * slow + 0.01 * g, 0.99 * v + 0.01 * g**2
        momenta, root = [fast / (1 - 0.9**t), slow / (1 - 0.99**t)], np.sqrt(v / (1 - 0.99**t))
        n = 0.9 * momenta[0] + 0.1 * g
        a = o = unit(n / root)
        if sides:
            o = unit(newton_schulz(n.reshape(sides))).reshape(shape)
        # The first loss stands for those before it, so that averages are of losses alone.
        decays = np.array([0.9, 0.99])
        value = float(c.value)
        losses = (1 - decays**t) * value if t == 1 else decays * losses + (1 - decays) * value
        fast_loss, slow_loss = np.log(losses / (1 - decays**t) + 1e-8)
        trend = np.clip(slow_loss - np.log(float(cases[0].value) + 1e-8), -10, 3)
        progress, (rows, columns) = (t - 1) / HORIZON, sides or (max(g.size, 1), 1)
        statistics = np.array(
            [
                *(progress, progress**0.5, progress**0.25, 0.2 * np.log(t)),
                *(np.clip(fast_loss - slow_loss, -3, 3), 0.3 * trend, 0.5 * np.log(HORIZON / 1000)),
                *(cosine(g, momenta[0]), cosine(g, momenta[1]), cosine(*momenta)),
                *(cosine(p, momenta[0]), cosine(a, o)),
                *(np.log(np.mean(np.abs(m / root)) + 1e-3) for m in momenta),
                np.clip(1 + 0.25 * np.log(np.mean(p**2)), -4, 4),
                *(0.5 * np.log(rows / 64), 0.5 * np.log(columns / 64)),
            ]
        )

        def output(net, statistics=statistics):
            net = theta[net]
            return (np.tanh(statistics @ net["w0"] + net["b0"]) @ net["w1"] + net["b1"])[0]

        features = [p, g, *momenta, g / root, *(m / root for m in momenta), o]
        x, net = np.stack([unit(f) for f in features], axis=-1), theta["direction"]
        for i in range(3):
            x = (np.maximum(x, 0.0) if i else x) @ net[f"w{i}"] + net[f"b{i}"]
        u = unit(o + np.tanh(output("mixture")) * a + x[..., 0])
        rate = (
            0.1 * np.sqrt(1000 / HORIZON) * (1 - progress) * np.exp(4 * np.tanh(output("rate") / 2))
        )
        if sides:
            factor = 1.0 if scaling == "rms" else 10.0 / np.sqrt(max(sides))
            u = factor * u + 0.2 * np.exp(3 * np.tanh(output("decay") / 2)) * p
        updates.append(-rate * u)
    return updates


@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("scaling", ["rms", "spectral"])
def test_updates_are_those_of_the_equations(scaling, is_trained):
    lopt, cases = muon_mlp(0.1, 0.2, scaling), [case(SHAPES, seed) for seed in range(4)]
    theta = theta_of(lopt)
    if is_trained:
        theta |= {net: theta_of(lopt, net)[net] for net in theta}
    found, _ = run(lopt.transform(theta, horizon=HORIZON), cases)
    for name, shape in SHAPES.items():
        expected = reference(theta, cases, name, shape, scaling)
        for x, y in zip([updates[name] for updates in found], expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4 * np.max(np.abs(y)))


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
        assert rms(updates(theta_of(lopt, net))["w"]) == pytest.approx(
            0.003 * np.sqrt(1000 / HORIZON), rel=1e-4
        )


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_unit_of_the_loss_does_not_matter(factor):
    lopt = muon_mlp()
    theta = {net: theta_of(lopt, net)[net] for net in theta_of(lopt)}
    tx = lopt.transform(theta, horizon=HORIZON)
    cases = [case(SMALL, seed) for seed in range(3)]
    scaled = [c._replace(grads=jax.tree.map(lambda g: factor * g, c.grads)) for c in cases]
    assert_close(run(tx, scaled)[0], run(tx, cases)[0], rtol=1e-3)


def test_there_are_two_scalings():
    with pytest.raises(
        ValueError, match=r"`scaling` must be rms or spectral; got 'mup'. Try spectral"
    ):
        muon_mlp(scaling="mup")  # pyright: ignore[reportArgumentType]
