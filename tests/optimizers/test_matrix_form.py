"""Designs against their published features as a matrix, in float64."""

import jax
import numpy as np
import pytest

from l2o.optimizers import features
from l2o.optimizers.celo import celo
from l2o.optimizers.per_tensor import as_float32
from l2o.registry import DESIGNS


def matrix_inputs(name, g, p, accumulated, count):
    """The published features as a matrix, (numbers, inputs), in float64."""
    rsqrt = lambda x, eps: 1.0 / np.sqrt(x + eps)
    if name == "mlp_lopt":
        columns = [g, p, *accumulated["momenta"]]
    else:
        m, (v,) = accumulated["momenta"], accumulated["second"]
        rows, columns_ = accumulated["rows"], accumulated["columns"]
        r = rsqrt(v, 1e-6)
        if g.ndim < 2:
            factors = [1.0 / np.sqrt(np.maximum(d + 1e-9, 1e-9)) for d in rows]
            momentum_factors = [rsqrt(d, 1e-6 if name == "adafac_mlp" else 0.0) for d in rows]
        else:
            second, _ = features.factored_axes(g.shape)
            inverse = lambda x: 1.0 / np.sqrt(np.maximum(x, 1e-9))
            factors = momentum_factors = [
                inverse(row / (row.mean(axis=second, keepdims=True) + 1e-9)) * inverse(column)
                for row, column in zip(rows, columns_, strict=True)
            ]
        bounded = [] if name == "adafac_mlp" else [np.clip(g, -0.1, 0.1)]
        scaled = [] if name == "adafac_mlp" else [g * r]
        columns = [g, *bounded, p, *m, v, *[x * r for x in m], r, *[g * f for f in factors]]
        columns += [*scaled, *rows, *columns_, *[rsqrt(x, 1e-8) for x in (*rows, *columns_)]]
        columns += [x * f for x, f in zip(m, momentum_factors, strict=True)]
    whole = np.stack([np.broadcast_to(x, g.shape).ravel() for x in columns], axis=1)
    whole = whole / np.sqrt(1e-5 + np.mean(whole**2, axis=0))
    if name == "celo":
        return whole
    progress = np.tanh(count / np.array(features.PROGRESS_SCALES) - 1.0)
    return np.hstack([whole, np.tile(progress, (len(whole), 1))])


def accumulate_plainly(name, g, accumulated):
    moved = lambda averages, x, decays: [
        b * a + (1.0 - b) * x for a, b in zip(averages, decays, strict=True)
    ]
    if name == "mlp_lopt":
        decays = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
        return {"momenta": moved(accumulated["momenta"], g, decays)}
    square, axes = g**2 + 1e-30, features.factored_axes(g.shape)
    row = square if axes is None else square.mean(axis=axes[1], keepdims=True)
    column = square if axes is None else square.mean(axis=axes[0], keepdims=True)
    decays = (0.9, 0.99, 0.999)
    return {
        "momenta": moved(accumulated["momenta"], g, decays),
        "second": moved(accumulated["second"], g**2, (0.999,)),
        "rows": moved(accumulated["rows"], row, decays),
        "columns": moved(accumulated["columns"], column, decays),
    }


@pytest.mark.parametrize("name", ["adafac_mlp", "celo", "mlp_lopt"])
def test_updates_equal_the_matrix_form(name, key):
    """Features stacked to a matrix and multiplied by that of the weights, in float64."""
    lopt = celo(scheduled=False) if name == "celo" else DESIGNS[name]()
    theta = lopt.init(key)
    net = theta if name == "mlp_lopt" else theta["mlp"]
    shapes = {"a": (7, 5), "b": (5,), "c": (5,), "d": (2, 3, 4, 2), "e": (7, 5)}
    rng = np.random.default_rng(0)
    params = {k: rng.standard_normal(shape) for k, shape in shapes.items()}
    counts = {"momenta": 6 if name == "mlp_lopt" else 3, "second": 1, "rows": 3, "columns": 3}
    accumulated = {k: {n: [0.0] * c for n, c in counts.items()} for k in shapes}
    tx = lopt.transform(theta)
    state, update = tx.init(as_float32(params)), jax.jit(tx.update)
    for count in range(3):
        grads = {k: 0.1 * rng.standard_normal(shape) for k, shape in shapes.items()}
        if name == "celo":  # where its bounds and the lack of one are seen
            grads |= {"b": 1e-4 * grads["b"], "c": grads["c"] * np.array([1e5, 1.0, 1.0, 1.0, 1e4])}
        found, state = update(as_float32(grads), state, as_float32(params))
        for k, g in grads.items():
            g = np.clip(g, -1e3, 1e3) if name == "celo" else g
            accumulated[k] = accumulate_plainly(name, g, accumulated[k])
            x = matrix_inputs(name, g, params[k], accumulated[k], count)
            for i in range(3):
                x = x @ np.asarray(net[f"w{i}"], np.float64) + np.asarray(net[f"b{i}"])
                x = np.maximum(x, 0.0) if i < 2 else x
            expected = -1e-3 * x[:, 0] * np.exp(1e-3 * x[:, 1])
            if name == "celo":
                expected *= np.sqrt(np.mean(params[k] ** 2) + 1e-9)
            largest = np.max(np.abs(expected))
            np.testing.assert_allclose(np.ravel(found[k]), expected, rtol=1e-4, atol=1e-5 * largest)
